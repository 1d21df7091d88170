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
from collections.abc import Callable, Iterable
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

    def appeal(self, record: Record) -> float:
        """Of a problem to `target`: (6·E[p(1 − p)])², 1 for one that was never asked."""
        a, b = record.solved + 1, record.attempts - record.solved + 1
        return (6 * a * b / ((a + b) * (a + b + 1))) ** 2


@lru_cache(maxsize=16)  # parts take turns: an order that is made anew for each draw would be felt
def _epoch(seed: int, epoch: int, problems: int, part: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, epoch, part] if part else [seed, epoch]).permutation(problems)


def problem_of(seed: int, position: int, problems: int, part: int = 0) -> int:
    """What a part of so many problems gives at `position`: each once per epoch, shuffled by seed, epoch and part."""
    return int(_epoch(seed, position // problems, problems, part)[position % problems])


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
        self._appeal = np.ones(self.size if self.course.kind == "target" else 0)

    @property
    def epoch(self) -> int:
        """That of the position walked last."""
        return max(0, self.walked - 1) // max(1, self.size)

    def learn(self, problem: int, record: Record) -> None:
        """The problem's record is this now."""
        if len(self._appeal):
            self._appeal[problem] = self.course.appeal(record)

    def ahead(self, asked: Iterable[int], records: Callable[[int], Record], changed: Iterable[int]) -> Look:
        """The walk as it would go on: `asked` are asked for already, the records of `changed` are not learnt yet."""
        appeal = self._appeal.copy()
        if len(appeal):
            for problem in changed:
                appeal[problem] = self.course.appeal(records(problem))
            appeal[list(asked)] = 0.0
        return Look(self, self.drawn, self.walked, records, appeal)


@dataclass
class Look:
    """A walk that goes ahead."""

    walk: Walk
    drawn: int
    walked: int
    records: Callable[[int], Record]
    appeal: Floats  # (size,) to `target`, 0 where a problem is asked for already

    def next(self) -> int:
        """The next problem, numbered within its part."""
        chosen = self._targeted() if self.walk.course.kind == "target" else None
        if chosen is None:
            chosen = self._rested() if self.walk.course.kind == "skip" else self._step()
        self.drawn += 1
        if len(self.appeal):
            self.appeal[chosen] = 0.0
        return chosen

    def _step(self) -> int:
        self.walked += 1
        return problem_of(self.walk.seed, self.walked - 1, self.walk.size, self.walk.part)

    def _rested(self) -> int:
        """The next that does not rest; if all do, the next."""
        start = self.walked
        for _ in range(2 * self.walk.size):  # from an early place in one epoch to a late one in the next
            epoch = self.walked // self.walk.size
            if self.records(problem := self._step()).rests_until <= epoch:
                return problem
        self.walked = start
        return self._step()

    def _targeted(self) -> int | None:
        """None where it is the turn of the epochs, or everything that could be drawn is asked for already."""
        explore = self.walk.course.explore
        if math.floor((self.drawn + 1) * explore) > math.floor(self.drawn * explore):
            return None
        sums = np.cumsum(self.appeal)
        if not sums[-1] > 0:
            return None
        chance = np.random.default_rng([self.walk.seed, TARGETED, self.walk.part, self.drawn]).random()
        return int(np.searchsorted(sums, chance * sums[-1], "right"))
