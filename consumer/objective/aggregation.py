"""Aggregation: how much each token counts in the loss of a batch.

Invariant: the coefficients are fixed before the first gradient, from the whole batch, so the loss is a plain sum that
no split into micro-batches or ranks can change. Refuses to know what they multiply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consumer.objective.axes import Aggregation


def coefficients(kind: Aggregation, counted: Tensor, sequences: Tensor, groups: Tensor, constant_length: int) -> Tensor:
    """c (N,) float64 of the tokens of a batch; `counted` (N,) bool are those in the denominators, `groups` (N,).

    `token_mean` 1/(tokens of the batch) (DAPO) · `sequence_mean` 1/(sequences·tokens of the sequence) (GRPO) ·
    `constant` 1/(sequences·L) (Dr. GRPO, Liu et al. 2025) · `prompt_mean` 1/(groups·tokens of the group) (ScaleRL).
    Sequences and groups without a counted token are not counted either.
    """
    share = counted.double()
    if kind == "token_mean":
        return torch.ones_like(share) / share.sum().clamp(min=1.0)
    own = groups if kind == "prompt_mean" else sequences
    tokens = _sums(share, own)  # of each sequence or group
    members = (tokens > 0).sum().clamp(min=1)
    if kind == "constant":
        return torch.ones_like(share) / (members * constant_length)
    return 1 / (members * tokens.clamp(min=1.0))[own]


def _sums(values: Tensor, index: Tensor) -> Tensor:
    size = int(index.max()) + 1 if len(index) else 0
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, index, values)
