"""Where a learner stands. Refuses to know how it got there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """The learner's counters; those of a run, not of a process."""

    step: int = 0
    version: int = 0  # of the weights in the trainer, published or about to be
    steps_at_version: int = 0
    sequence: int = 0  # of the newest durable checkpoint

    def advance(self, *, publishing: bool) -> None:
        """A step was taken."""
        self.step += 1
        self.steps_at_version += 1
        if publishing:
            self.publish()

    def publish(self) -> None:
        """The weights become a version of their own."""
        self.version += 1
        self.steps_at_version = 0
