"""The default objective: decoupled, importance-corrected GRPO with a global token mean.

Invariant: the loss of a batch is a plain sum over its tokens divided by a number fixed before the first one is seen,
so no split into micro-batches and no order can change it. Refuses to know how tokens are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consumer.objective import correction, surrogate
from consumer.settings import ObjectiveSettings


@dataclass(frozen=True)
class TokenTerms:
    """Per-token parts of the loss, each (N,): `loss` is differentiable, the others are for diagnosis."""

    loss: Tensor
    weight: Tensor
    ratio: Tensor
    clipped: Tensor


def token_terms(
    logprobs: Tensor,
    proximal_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    advantages: Tensor,
    objective: ObjectiveSettings,
) -> TokenTerms:
    """−w·min(ρA, clip(ρ)A) with ρ = π/π_prox and w = min(π_prox/μ, C) without gradient; all (N,).

    With one minibatch a batch π_prox = sg(π), hence ρ = 1: the clip is then inactive and the gradient is that of
    −w·A·log π.
    """
    ratio = surrogate.importance_ratio(logprobs, proximal_logprobs.detach())
    weight = correction.truncated_token_weight(proximal_logprobs, behaviour_logprobs, objective.truncation)
    gain = surrogate.ppo(ratio, advantages.detach(), objective.clip_low, objective.clip_high)
    hit = surrogate.clipped(ratio.detach(), advantages, objective.clip_low, objective.clip_high)
    return TokenTerms(-weight * gain, weight, ratio.detach(), hit)


def global_token_mean(terms: Tensor, denominator: int) -> Tensor:
    """Σ terms / denominator: the denominator counts the completion tokens of the *whole* batch, before any mask."""
    return terms.sum() / denominator


def effective_sample_size(weights: Tensor) -> float:
    """(Σw)² / (N·Σw²) in (0, 1], for w = π_prox/μ of N tokens (Kish 1965); 1 when all weights are equal."""
    total = torch.sum(weights)
    return float(total * total / (weights.numel() * torch.sum(weights * weights))) if weights.numel() else 1.0
