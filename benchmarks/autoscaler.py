"""How many generators there should be: signals read from scrapes, and the control law that KEDA leaves to Kubernetes.

Invariant: what is decided is a function of samples and of decisions of the last minutes, as in a cluster: nothing
here knows the true load. Refuses to know where samples come from, and how long a generator takes to start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.virtual_load import OCCUPANCY

WINDOW = 600.0  # seconds of the means
INTERVAL = 30.0  # seconds between scrapes
MOST_WAIT = 0.5  # of the learner's time that counts: demand is taken for twice what is served, at most


@dataclass(frozen=True)
class Scrape:
    """What Prometheus has read at one moment."""

    time: float  # seconds
    claimed: int  # headrace_ledger_located_tickets{kind="train", place="claimed"}
    waiting: int  # the same of place="waiting"
    waited: float  # headrace_learner_phase_seconds_total{phase="wait"}


Scrapes = Sequence[Scrape]


def recent(scrapes: Scrapes, seconds: float = WINDOW) -> Scrapes:
    """Those of the last so many seconds, the newest last; never none."""
    first = next(i for i in range(len(scrapes)) if scrapes[i].time > scrapes[-1].time - seconds)
    return scrapes[first:]


def mean(scrapes: Scrapes, value: Callable[[Scrape], float], seconds: float = WINDOW) -> float:
    """avg_over_time(value[seconds])."""
    window = recent(scrapes, seconds)
    return sum(value(scrape) for scrape in window) / len(window)


def wait(scrapes: Scrapes, seconds: float = WINDOW) -> float:
    """rate(waited[seconds]): the part of the window, also of one that has just begun, in which the learner waited."""
    window = recent(scrapes, seconds)
    passed = max(window[-1].time - window[0].time, seconds - INTERVAL)
    return min(1.0, (window[-1].waited - window[0].waited) / passed)


def claimed(scrapes: Scrapes) -> float:
    """Little's law: slots that are busy, in the mean."""
    return mean(scrapes, lambda scrape: scrape.claimed)


def wanted(scrapes: Scrapes) -> float:
    """Slots that would be busy if the learner did not wait while tickets lie about."""
    missing = wait(scrapes) * mean(scrapes, lambda scrape: scrape.waiting > 0)
    return claimed(scrapes) / (1 - min(missing, MOST_WAIT))


def claimed_now(scrapes: Scrapes) -> float:
    """Slots that are busy."""
    return scrapes[-1].claimed


def lag(scrapes: Scrapes) -> float:
    """Tickets that nobody has claimed."""
    return scrapes[-1].waiting


def waits(scrapes: Scrapes) -> float:
    """The learner's wait in the last two minutes."""
    return wait(scrapes, 120.0)


@dataclass(frozen=True)
class Signal:
    """`per generator`: a total, shared among generators of `target` each. `ratio`: what the number is multiplied by."""

    name: str
    read: Callable[[Scrapes], float]
    target: Callable[[int], float]  # of the slots of a generator
    kind: Literal["per generator", "ratio"] = "per generator"


def share(slots: int) -> float:
    """Busy slots of a generator that there are just enough of."""
    return OCCUPANCY * slots


def whole(slots: int) -> float:
    """A ticket for every slot lies about."""
    return slots


def tolerable(_: int) -> float:
    """A twentieth of the learner's time."""
    return 0.05


CLAIMED = Signal("claimed, ten-minute mean", claimed, share)
WANTED = Signal("wanted: claimed over the learner's busy share", wanted, share)
PRESENT = Signal("claimed, without the mean", claimed_now, share)
LAG = Signal("stream lag", lag, whole)
WAIT = Signal("learner's wait fraction", waits, tolerable, "ratio")
SIGNALS = (WANTED, CLAIMED, PRESENT, LAG, WAIT)


@dataclass
class Autoscaler:
    """HorizontalPodAutoscaler's control law, with its defaults but for `stabilisation` (300)."""

    signal: Signal
    slots: int
    least: int = 1
    most: int = 30
    interval: float = 30.0
    tolerance: float = 0.1
    stabilisation: float = 900.0  # shrinks to the largest number that was recommended in so many seconds
    recommended: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, scrapes: Scrapes, now: float, current: int) -> int:
        """How many there should be, of `current` that there are or are being started."""
        if not self.recommended:
            self.recommended.append((now, current))  # as if that had been recommended
        self.recommended = [(t, n) for t, n in self.recommended if t > now - self.stabilisation]
        self.recommended.append((now, self._recommend(scrapes, current)))
        newest, highest = self.recommended[-1][1], max(n for _, n in self.recommended)
        steady = newest if newest > current else min(current, highest)
        return max(self.least, min(steady, self.most, current + max(4, current)))

    def _recommend(self, scrapes: Scrapes, current: int) -> int:
        value, target = self.signal.read(scrapes), self.signal.target(self.slots)
        ratio = value / target if self.signal.kind == "ratio" else value / (target * current)
        return current if abs(ratio - 1) <= self.tolerance else math.ceil(ratio * current)
