"""A batch's columns where the model computes: sent once, of which each micro-batch takes its rows.

Invariant: a row is the same token as in the `Sheet`, its numbers those of sheet and plan. Refuses to know the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consumer.objective.tokens import Tokens
from consumer.plan import Plan
from consumer.sheet import Sheet
from consumer.transfer import sent


@dataclass(frozen=True)
class Columns:
    """Each (N,), as in `Sheet` and `Plan`; `anchor` and `reference` log-probs, where there are any."""

    behaviour: Tensor
    advantages: Tensor
    coefficients: Tensor
    staleness: Tensor
    sequences: Tensor
    mask: Tensor
    dropped: Tensor
    anchor: Tensor | None
    reference: Tensor | None

    @staticmethod
    def of(sheet: Sheet, fixed: Plan, anchor: Tensor | None, reference: Tensor | None, device: torch.device) -> Columns:
        """On `device`."""
        columns = (sheet.behaviour, fixed.advantages, fixed.coefficients, fixed.staleness, sheet.sequences)
        there = (*columns, fixed.mask, fixed.dropped, anchor, reference)
        return Columns(*(None if column is None else sent(column, device) for column in there))  # type: ignore[arg-type]

    def tokens(self, rows: Tensor, logprobs: Tensor) -> Tokens:
        """These rows (n,), whose log π (n,) the model has just given: numbers in its precision."""
        kind = logprobs.dtype
        return Tokens(
            logprobs=logprobs,
            anchor=logprobs.detach() if self.anchor is None else self.anchor[rows].to(kind),
            behaviour=self.behaviour[rows].to(kind),
            advantages=self.advantages[rows].to(kind),
            staleness=self.staleness[rows],
            sequences=self.sequences[rows],
            mask=self.mask[rows],
            dropped=self.dropped[rows],
        )
