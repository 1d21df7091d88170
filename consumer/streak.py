"""How many groups in a row had nothing to learn from, and which way.

Invariant: one group with a signal begins anew. Refuses to know why a run would end for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.schema import RolloutGroup


@dataclass
class Streak:
    """The degenerate groups since the last one with a signal."""

    length: int = 0
    all_solved: bool = True

    def signal(self) -> None:
        """A group arrived whose rewards differ."""
        self.length, self.all_solved = 0, True

    def consumed(self, group: RolloutGroup) -> None:
        """A group was trained on, or left out as degenerate; what has a signal has begun the count anew on arrival."""
        if group.degenerate:
            self.length += 1
            self.all_solved &= float(group.rewards.max()) > 0

    @property
    def outcome(self) -> str:
        """What a run that ends for it has come to."""
        return "solved" if self.all_solved else "no signal"
