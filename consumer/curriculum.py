"""Which problems the next regular tickets ask for: every part by its weight, and each problem of a part once per epoch.

Invariant: what comes next is a function of the seed, the parts and how many problems each part has given so far; and
those counts never stray from the parts' shares by as much as one problem. Refuses to know tickets, Redis and rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from broker.schema import PartCard

ROUNDING = 1e-9  # of shares times draws, in float64


@lru_cache(maxsize=16)  # parts take turns: an order that is made anew for each draw would be felt
def _epoch(seed: int, epoch: int, problems: int, part: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, epoch, part] if part else [seed, epoch]).permutation(problems)


def problem_of(seed: int, position: int, problems: int, part: int = 0) -> int:
    """What a part of so many problems gives at `position`: each once per epoch, shuffled by seed, epoch and part."""
    return int(_epoch(seed, position // problems, problems, part)[position % problems])


@dataclass(frozen=True)
class Draw:
    """Problems, in order, and how many of them each part gave."""

    problems: tuple[int, ...]
    parts: Mapping[int, int]


class Curriculum:
    """How far each part has been walked."""

    def __init__(self, seed: int, parts: Sequence[PartCard]) -> None:
        self._seed, self._sizes = seed, [part.train for part in parts]
        self._first = [0, *accumulate(self._sizes)]
        weights = np.array([part.weight if part.train else 0.0 for part in parts])  # (parts,)
        self._shares = weights / weights.sum()
        self.drawn = [0] * len(parts)

    def resume(self, drawn: Mapping[int, int]) -> None:
        """Go on from what each part has given; a part that is not named has given nothing."""
        self.drawn = [drawn.get(part, 0) for part in range(len(self._sizes))]

    def next(self, count: int) -> Draw:
        """The next `count` problems. They count as drawn once `drew` says so: a commit can fail."""
        counts, problems, parts = np.array(self.drawn), [], Counter[int]()
        for _ in range(count):
            part = self._turn(counts)
            position = int(counts[part])
            problems.append(self._first[part] + problem_of(self._seed, position, self._sizes[part], part))
            counts[part] += 1
            parts[part] += 1
        return Draw(tuple(problems), parts)

    def drew(self, draw: Draw) -> None:
        """Tickets with these problems are out."""
        for part, count in draw.parts.items():
            self.drawn[part] += count

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
