"""Which problems the next regular tickets ask for: every part by its weight, and of a part what its course chooses.

Invariant: what comes next is a function of the seed, the parts, the counters and the observations; they change when the
books have changed, never before. Parts' counts never stray from their shares by as much as one problem. Refuses to know
tickets, Redis and rewards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from broker.card import PartCard
from broker.coursebook import Observation, Standing
from consumer.choice import Course, Look, Walk
from consumer.history import STATES, History, Memory

ROUNDING = 1e-9  # of shares times draws, in float64


@dataclass(frozen=True)
class Draw:
    """What a commit adds: problems that are asked for, in order, and what was observed before they were chosen."""

    problems: tuple[int, ...]
    drawn: Mapping[int, int]  # part → how many of the problems it gave
    walked: Mapping[int, int]  # those parts → how many positions of their epochs are walked then
    observed: tuple[Observation, ...] = ()


class Curriculum:
    """The walks of all parts, and what is remembered of their problems."""

    def __init__(self, seed: int, parts: Sequence[PartCard], course: Course | None = None) -> None:
        self.course = course or Course()
        self._names = [part.name for part in parts]
        self._first = [0, *accumulate(part.train for part in parts)]
        weights = np.array([part.weight if part.train else 0.0 for part in parts])  # (parts,)
        self._shares = weights / weights.sum()
        self.walks = [Walk(self.course, seed, number, part.train) for number, part in enumerate(parts)]
        self.memory = Memory(History(self.course.longest_rest))

    def remember(self, history: History) -> None:
        """A checkpoint holds this history."""
        self.memory = Memory(history)

    def resume(self, standing: Standing) -> None:
        """Go on from what the books say, and from what is remembered; a part they do not name has given nothing."""
        self.memory.resume(standing.observed, standing.latest)
        drawn, walked = standing.drawn, standing.walked
        self.walks = [
            replace(walk, drawn=drawn.get(walk.part, 0), walked=walked.get(walk.part, 0)) for walk in self.walks
        ]
        self._learn(self.memory.now.problems)

    def observation(self, problem: int, solved: int, attempts: int) -> tuple[Observation, ...]:
        """What is noted of a group; nothing by a course that does not look at it."""
        if not self.course.observes or not attempts or problem >= self._first[-1]:  # the last: of another task
            return ()
        return (Observation(problem, self.walks[self._part_of(problem)].epoch, solved, attempts),)

    def next(self, count: int, asked: Collection[int] = (), observed: Sequence[Observation] = ()) -> Draw:
        """The next `count` problems, these having been observed; `asked`: problems that tickets in play ask for.

        It all counts once `drew` says so: a commit can fail.
        """
        looks = self._ahead(asked, observed)
        counts, problems = np.array([walk.drawn for walk in self.walks]), []
        for _ in range(count):
            part = self._turn(counts)
            problems.append(self._first[part] + looks[part].next())
            counts[part] += 1
        return Draw(
            tuple(problems),
            {part: look.drawn - look.walk.drawn for part, look in enumerate(looks) if look.drawn > look.walk.drawn},
            {part: look.walked for part, look in enumerate(looks) if look.drawn > look.walk.drawn},
            tuple(observed),
        )

    def drew(self, draw: Draw) -> None:
        """The books say so."""
        for walk in self.walks:
            walk.drawn += draw.drawn.get(walk.part, 0)
            walk.walked = draw.walked.get(walk.part, walk.walked)
        self.memory.observe(draw.observed)
        self._learn([seen.problem for seen in draw.observed])

    def summary(self) -> dict[str, Any]:
        """For people: epochs walked of each part, by name, and how many observed problems are in which state."""
        states = self.memory.now.states
        return {
            "epochs": {
                name: walk.walked / max(1, walk.size) for name, walk in zip(self._names, self.walks, strict=True)
            },
            "problems": {state: states[state] for state in STATES} if self.course.observes else {},
        }

    def _ahead(self, asked: Collection[int], observed: Sequence[Observation]) -> list[Look]:
        foreseen = self.memory.now.foreseen(observed)
        looks = []
        for walk in self.walks:
            first, end = self._first[walk.part], self._first[walk.part + 1]
            changed = {problem - first: record for problem, record in foreseen.items() if first <= problem < end}
            looks.append(walk.ahead([p - first for p in asked if first <= p < end], changed))
        return looks

    def _learn(self, problems: Collection[int]) -> None:
        for problem in problems:
            if problem < self._first[-1]:  # else it was observed of another task
                part = self._part_of(problem)
                self.walks[part].learn(problem - self._first[part], self.memory.now[problem])

    def _part_of(self, problem: int) -> int:
        return bisect_right(self._first, problem) - 1

    def _turn(self, counts: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """The part whose turn it is, after Tijdeman, The chairman assignment problem (1980).

        Of the parts that are owed enough, the one that could wait least. To take the one that is owed most would let
        a count stray by more than one where there are many parts.
        """
        several = int(np.count_nonzero(self._shares))
        if several == 1:
            return int(self._shares.argmax())
        margin = 1 / (2 * several - 2)
        owed = self._shares * (counts.sum() + 1) - counts
        with np.errstate(divide="ignore", invalid="ignore"):
            patience = (1 - margin - owed) / self._shares
        return int(np.where((self._shares > 0) & (owed >= margin - ROUNDING), patience, np.inf).argmin())
