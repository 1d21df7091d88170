"""One look at a run: all that a view is given, wherever it came from.

Invariant: what nobody knows is None and never a guess. Refuses to know files, sockets and screens.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from monitoring.alarms import Alarms
from monitoring.endpoints import Answer
from monitoring.progress import RECENT, History, Record, StepRecord

SILENT_SECONDS = 15.0  # a process that has said nothing for this long may be gone; shorter, it may just be busy


@dataclass(frozen=True)
class Sight:
    """Times are seconds since the epoch."""

    name: str
    about: str  # what else tells this run from others
    steps: int | None  # that it is to take
    max_staleness: int | None
    progress: History
    new: Sequence[Record]
    now: float
    began: float | None
    status: str
    status_since: float | None  # None while steps speak for themselves
    learner: Answer | None
    generators: Mapping[str, Answer | None]
    tokens_per_second: float | None  # published by all generators
    groups_per_second: float | None
    going: bool
    alarms: Alarms | None = None
    blind: float | None = None  # seconds since whoever tells us has last answered, None while that is usual

    @property
    def step(self) -> StepRecord | None:
        """The last one."""
        return self.progress.steps[-1] if self.progress.steps else None

    @property
    def elapsed(self) -> float | None:
        """Seconds since the run began, up to now or to its last record."""
        until = self.now if self.going else self.progress.last_time
        return None if self.began is None or until is None else max(0.0, until - self.began)

    @property
    def left(self) -> float | None:
        """Seconds until the last step at the pace of the recent ones; None before there is a pace, and at the end."""
        recent = self.progress.steps[1:][-RECENT:]  # the first step's time includes the start of the engines
        if self.status != "training" or not recent or not recent[-1].steps:
            return None
        pace = statistics.median(r.seconds / r.covers for r in recent)  # a restart in between is no pace
        taken = min(pace, self.now - recent[-1].time)
        return max(0.0, pace * (recent[-1].steps - recent[-1].step) - taken)
