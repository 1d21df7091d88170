"""Which of a part's problems comes next: by exact epochs, past those that rest, or those of a wanted pass rate.

Invariant: the choice is a function of the seed, the counters and the records; looking ahead changes nothing. Refuses to
know where records come from, and other parts.

`uniform` gives each problem once an epoch, shuffled by seed, epoch and part. `skip` walks the same epochs past problems
whose last groups were solved by all completions or by none: they rest for 1, 2, 4 … epochs, and are then asked again.
`target` draws at random, with a probability proportional to the square of the variance p(1 − p) that a problem's reward
is expected to have, which is largest where half of the completions solve it; what is believed of its pass rate p is
Beta(1 + solved, 1 + failed). Beside a problem never asked (1) one solved by half of 8 completions counts 1.9, one never
solved in 8 0.24. A fixed share of its draws, `explore`, are those of `uniform`, so that nothing is forgotten. That
p(1 − p) measures what can be learnt: Foster et al., Learning to reason at the frontier of learnability (2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from consumer.history import Record

Floats = np.ndarray[Any, np.dtype[np.float64]]
TARGETED = 1 << 32  # beside epochs, in the seeds of random numbers


@dataclass(frozen=True)
class Course:
    """How a curriculum chooses."""

    kind: Literal["uniform", "skip", "target"] = "uniform"
    longest_rest: int = 8  # of `skip`, epochs
    explore: float = 0.1  # of `target`: the share of draws that are uniform

    @property
    def observes(self) -> bool:
        """It goes by how groups did."""
        return self.kind != "uniform"

    @property
    def avoids(self) -> bool:
        """It asks for no problem that a ticket in play asks for."""
        return self.kind == "target"

    def appeal(self, record: Record) -> float:
        """Of a problem to `target`: (6·E[p(1 − p)])², 1 for one that was never asked."""
        a, b = record.solved + 1, record.attempts - record.solved + 1
        return (6 * a * b / ((a + b) * (a + b + 1))) ** 2


def order_of(seed: int, epoch: int, problems: int, part: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The problems of a part in the order of that epoch, (problems,)."""
    return np.random.default_rng([seed, epoch, part] if part else [seed, epoch]).permutation(problems)


@lru_cache(maxsize=4)
def _kept(seed: int, epoch: int, problems: int, part: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return order_of(seed, epoch, problems, part)


def problem_of(seed: int, position: int, problems: int, part: int = 0) -> int:
    """What a part of so many problems gives at `position` where it is walked uniformly."""
    return int(_kept(seed, position // problems, problems, part)[position % problems])


@dataclass
class Walk:
    """One part, of `size` problems: how many were drawn, and how many positions of its epochs that took."""

    course: Course
    seed: int
    part: int
    size: int
    drawn: int = 0
    walked: int = 0

    def __post_init__(self) -> None:
        self._orders = dict[int, np.ndarray[Any, np.dtype[np.int64]]]()
        self._known = np.full(self.size if self.course.observes else 0, self._worth(Record()))

    @property
    def epoch(self) -> int:
        """That of the position walked last."""
        return max(0, self.walked - 1) // max(1, self.size)

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """As `order_of`; the last two are kept, since a walk looks back and forth over the end of an epoch."""
        if epoch not in self._orders:
            kept = {number: order for number, order in self._orders.items() if number == epoch - 1}
            self._orders = kept | {epoch: order_of(self.seed, epoch, self.size, self.part)}
        return self._orders[epoch]

    def learn(self, problem: int, record: Record) -> None:
        """The problem's record is this now."""
        if len(self._known):
            self._known[problem] = self._worth(record)

    def ahead(self, asked: Iterable[int], changed: Mapping[int, Record]) -> Look:
        """The walk as it would go on: `asked` are asked for already, what has `changed` is not learnt yet."""
        known = self._known.copy()
        if len(known):
            for problem, record in changed.items():
                known[problem] = self._worth(record)
            if self.course.kind == "target":
                known[list(asked)] = 0.0
        return Look(self, self.drawn, self.walked, known)

    def _worth(self, record: Record) -> float:
        return self.course.appeal(record) if self.course.kind == "target" else float(record.rests_until)


@dataclass
class Look:
    """A walk that goes ahead. `known` (size,): to `target` the appeal of a problem, to `skip` when its rest is over."""

    walk: Walk
    drawn: int
    walked: int
    known: Floats
    sums: Floats | None = None  # of appeals, perhaps with some that have been drawn since

    def next(self) -> int:
        """The next problem, numbered within its part."""
        chosen = self._targeted() if self.walk.course.kind == "target" else None
        if chosen is None:
            chosen = self._rested() if self.walk.course.kind == "skip" else self._step()
        self.drawn += 1
        if self.walk.course.kind == "target":
            self.known[chosen] = 0.0
        return chosen

    def _step(self) -> int:
        epoch, place = divmod(self.walked, self.walk.size)
        self.walked += 1
        return int(self.walk.order(epoch)[place])

    def _rested(self) -> int:
        """The next that does not rest, in this epoch or the next one; if all do, the next."""
        epoch, place = divmod(self.walked, self.walk.size)
        for ahead, start in ((epoch, place), (epoch + 1, 0)):
            order = self.walk.order(ahead)[start:]
            awake = np.flatnonzero(self.known[order] <= ahead)
            if len(awake):
                self.walked = ahead * self.walk.size + start + int(awake[0]) + 1
                return int(order[awake[0]])
        return self._step()

    def _targeted(self) -> int | None:
        """None where it is the turn of the epochs, or everything that could be drawn is asked for already."""
        explore = self.walk.course.explore
        if math.floor((self.drawn + 1) * explore) > math.floor(self.drawn * explore):
            return None
        chance = np.random.default_rng([self.walk.seed, TARGETED, self.walk.part, self.drawn])
        for fresh in (False, True):
            if fresh or self.sums is None:
                self.sums = np.cumsum(self.known)
            if not self.sums[-1] > 0:
                return None
            chosen = int(np.searchsorted(self.sums, chance.random() * self.sums[-1], "right"))
            if self.known[chosen] > 0:  # else it was drawn since: that is as likely as it was, and does not count
                return chosen
        return None
