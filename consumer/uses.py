"""What a step made of each rollout of its batch: advantage, importance ratios, how much of it was bounded.

Invariant: of each rollout's own tokens, as they were at the moment their gradient was taken; a few sums over arrays of
one number a token, and nothing is kept of the arrays. Refuses to know what the figures are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from broker.audit import Share
from broker.schema import RolloutGroup
from consumer.figures import Figures
from consumer.objective.tokens import LARGEST_LOG_RATIO
from consumer.plan import Plan
from consumer.sheet import Sheet

Floats = npt.NDArray[np.float64]
BOUNDED = ("clipped", "truncated", "masked")


@dataclass(frozen=True)
class Uses:
    """Of the S rollouts of a batch, in its order: `table` name → (S,). `sizes`: how many of them each group has."""

    table: dict[str, Floats]
    sizes: tuple[int, ...]

    @staticmethod
    def of(sheet: Sheet, figures: Figures, plan: Plan) -> Uses:
        """From the columns of a step. Ratios are π/μ; an advantage that differs from token to token is their mean."""
        some = np.flatnonzero(sheet.lengths > 0)
        starts, lengths = sheet.starts[some], sheet.lengths[some]
        off = figures["logprobs"].numpy() - sheet.behaviour.numpy().astype(np.float64)
        ratio = np.exp(np.clip(off, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))  # as `held` does, without torch's threads
        advantage = plan.advantages.numpy()
        low, high = (f.reduceat(advantage, starts) for f in (np.minimum, np.maximum))
        mean = np.add.reduceat(advantage, starts) / lengths
        found = {
            "advantage": np.where(low == high, low, mean),  # no sum: it would round what is the same everywhere
            "ratio_mean": np.add.reduceat(ratio, starts) / lengths,
            "ratio_min": np.minimum.reduceat(ratio, starts),
            "ratio_max": np.maximum.reduceat(ratio, starts),
            **{name: np.add.reduceat(figures[name].numpy(), starts) / lengths for name in BOUNDED},
        }
        table = {name: np.full(len(sheet.lengths), math.nan) for name in found}
        for name, values in found.items():
            table[name][some] = values
        return Uses(table, tuple(sheet.sizes))

    def shares(self, number: int, group: RolloutGroup) -> tuple[Share, ...]:
        """Of the rollouts of the batch's group of that number. What is not finite is None."""
        first = sum(self.sizes[:number])
        return tuple(
            Share(reward=float(r.reward), tokens=len(r.tokens), **self._figures(first + n))
            for n, r in enumerate(group.rollouts)
        )

    def _figures(self, row: int) -> dict[str, float | None]:
        found = {name: float(values[row]) for name, values in self.table.items()}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}
