"""The learner's step as one would write it with transformers: padded batches, logits of everything.

Invariant: the loss, optimizer and clip of the learner's defaults, on the same sequences; on CUDA bfloat16 autocast.
Attention is the module's own, which had better be `sdpa`. Refuses to know packing and chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from broker.schema import Ints, Rollout, RolloutGroup
from consumer.objective.advantage import centred
from consumer.optimizer import make_optimizer
from consumer.settings import LearnerRecipe

Row = tuple[Ints, Rollout, float]  # a prompt, a completion, its advantage


class PaddedTrainer:
    """`rows` sequences a batch, as they arrive or the longest ones first, padded on the right to its longest."""

    def __init__(
        self, module: Any, recipe: LearnerRecipe, device: torch.device, rows: int, *, longest_first: bool = False
    ) -> None:
        self.module, self.device, self.rows, self.longest_first = module.to(device).train(), device, rows, longest_first
        self.weights = list(module.parameters())
        self.optimizer = make_optimizer(self.weights, recipe.learner)

    def train(self, groups: Sequence[RolloutGroup]) -> float:
        """One update; the loss."""
        parts, batches = list[Tensor](), batches_of(groups, self.rows, longest_first=self.longest_first)
        total = sum(len(r.tokens) for batch in batches for _, r, _ in batch)
        for batch in batches:
            part = self._loss(batch) / total
            part.backward()
            parts.append(part.detach())
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(torch.stack(parts).sum())

    def _loss(self, rows: Sequence[Row]) -> Tensor:
        """Σ −w·min(ρA, clip(ρ)A) over completion tokens, w = min(π/μ, 2)."""
        width = _width(rows)
        ids, seen, counted = (np.zeros((len(rows), width), np.int64) for _ in range(3))
        behaviour, gains = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), 1), np.float32)
        for n, (prompt, rollout, gain) in enumerate(rows):
            end = len(prompt) + len(rollout.tokens)
            ids[n, :end] = np.concatenate([prompt, rollout.tokens])
            seen[n, :end], counted[n, len(prompt) : end], gains[n] = 1, 1, gain
            behaviour[n, len(prompt) : end] = rollout.behaviour_logprobs
        tokens, mask, chosen, mu, advantage = (
            torch.from_numpy(x).to(self.device) for x in (ids, seen, counted[:, 1:], behaviour[:, 1:], gains)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.module(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        logprobs = torch.log_softmax(logits.float(), -1).gather(2, tokens[:, 1:, None])[..., 0]
        ratio = torch.exp(logprobs - logprobs.detach())
        weight = torch.exp(logprobs.detach() - mu).clamp(max=2.0)
        return -(chosen * weight * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)).sum()


def batches_of(groups: Sequence[RolloutGroup], rows: int, *, longest_first: bool = False) -> list[list[Row]]:
    """What is computed at once."""
    every = list(_rows(groups))
    if longest_first:
        every.sort(key=lambda row: -len(row[0]) - len(row[1].tokens))
    return [every[start : start + rows] for start in range(0, len(every), rows)]


def padding(batches: Sequence[Sequence[Row]]) -> float:
    """Share of what is computed that is padding."""
    real = sum(len(prompt) + len(r.tokens) for batch in batches for prompt, r, _ in batch)
    return 1 - real / sum(_width(batch) * len(batch) for batch in batches)


def _rows(groups: Sequence[RolloutGroup]) -> Iterator[Row]:
    for group in groups:
        gains = centred([r.reward for r in group.rollouts], "leave_one_out")
        yield from ((group.prompt, r, float(a)) for r, a in zip(group.rollouts, gains, strict=True))


def _width(rows: Sequence[Row]) -> int:
    return max(len(prompt) + len(r.tokens) for prompt, r, _ in rows)
