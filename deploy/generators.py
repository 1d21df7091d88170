"""The generators of a run on this machine: as many as are wanted, numbered from 0.

Invariant: of each number there is one process at most; one that is to leave may drain for as long as the recipe says,
and its number is given again once it is gone. Refuses to know who wants how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.children import Child

STOP_SECONDS = 6.0
DRAIN_SECONDS = 2.0  # of these; who stops a run here does not wait for long answers
LEAVING_SECONDS = 10.0  # beyond its drain: to hand back, sign off, and end the engine


@dataclass
class Generators:
    """Those that serve and those that are leaving. `drain_seconds` are the recipe's."""

    make: Callable[[int], Child]
    drain_seconds: float
    serving: dict[int, Child] = field(default_factory=dict)
    leaving: dict[int, Child] = field(default_factory=dict)

    def be(self, count: int) -> None:
        """One step towards `count` of them, without waiting: the highest numbers leave, missing ones are started."""
        self.leaving = {number: child for number, child in self.leaving.items() if not child.gone}
        for number in [number for number in self.serving if number >= count]:
            child = self.leaving[number] = self.serving.pop(number)
            child.ask_to_leave(self.drain_seconds + LEAVING_SECONDS)
        for number in range(count):
            if number not in self.serving and number not in self.leaving:
                child = self.serving[number] = self.make(number)
                child.start()

    def stop(self) -> None:
        """End all: they drain for a moment, then a second signal has them hand back what they hold."""
        everyone = [*self.serving.values(), *self.leaving.values()]
        began = time.monotonic()
        for until in (DRAIN_SECONDS, STOP_SECONDS):
            for child in everyone:
                child.ask_to_stop()
            for child in everyone:
                child.wait(began + until - time.monotonic())
        for child in everyone:
            child.stop(0.0)
        self.serving, self.leaving = {}, {}
