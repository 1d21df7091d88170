"""Virtual time: what is planned happens in order, and between two events nothing does.

Invariant: time never goes back, and what is planned for one moment happens in the order of planning. Refuses to know
what happens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """Of one simulation. Seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned = 0
        self._events: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, time: float, happen: Callable[[], object]) -> None:
        """Plan something. Raises `ValueError` for what is over."""
        if time < self.now:
            raise ValueError(f"{time} has passed: it is {self.now}")
        self._planned += 1
        heapq.heappush(self._events, (time, self._planned, happen))

    def after(self, seconds: float, happen: Callable[[], object]) -> None:
        """Plan something, from now."""
        self.at(self.now + seconds, happen)

    def every(self, seconds: float, happen: Callable[[], object]) -> None:
        """Now, and then again and again."""
        happen()
        self.after(seconds, lambda: self.every(seconds, happen))

    def run(self, until: float) -> None:
        """Let happen what is planned until then."""
        while self._events and self._events[0][0] <= until:
            self.next()
        self.now = until

    def next(self) -> None:
        """Let happen what comes next. Raises `IndexError` if nothing is planned."""
        self.now, _, happen = heapq.heappop(self._events)
        happen()
