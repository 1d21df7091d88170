"""Surrogates: what is maximised, token by token, given an advantage. Refuses to know groups, masks and means."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0  # e^20: beyond it a ratio is no evidence any more, only an overflow in waiting


def importance_ratio(logprobs: Tensor, reference: Tensor) -> Tensor:
    """ρ = π/reference from log-probs, (N,) and (N,) → (N,); the log-ratio is held within ±20 to stay finite."""
    return torch.exp(torch.clamp(logprobs - reference, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def ppo(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high)·A), all (N,). Schulman et al. 2017; two bounds: DAPO, Yu et al. 2025."""
    return torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - clip_low, 1 + clip_high) * advantages)


def clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Where PPO's clip takes the gradient away: {A > 0, ρ > 1 + ε_high} ∪ {A < 0, ρ < 1 − ε_low}, (N,) bool."""
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
