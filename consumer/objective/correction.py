"""Behaviour correction: the weight that pays for tokens having been sampled by an older policy.

Invariant: the weight is never differentiated, and its bounds are on ρ = π_prox/μ, never on the inverse.
Refuses to know the surrogate that it multiplies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens, held, mean, running, total

M2PO_LEAST = (0.7, 1.5)  # a ratio within needs no masking, whatever the second moment: M2PO, Zheng et al. 2025


class Weight(NamedTuple):
    """`value` (N,), without gradient; (N,) bool: where the ratio was `truncated`, and where it was `masked` to 0."""

    value: Tensor
    truncated: Tensor
    masked: Tensor


@torch.no_grad()
def token_weights(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Weight:
    """w (N,): a function of the ratio at its level, and 0 where a filter drops the token or its sequence.

    `truncate`: min(ρ, C) (Espeholt et al. 2018). `mask`: ρ·1[lo ≤ ρ ≤ hi] (MIS; IcePop; Liu et al. 2025).
    """
    ratio = torch.exp(held(log_ratio(proximal - tokens.behaviour, tokens, of.correction)))
    value, nowhere = ratio, torch.zeros_like(tokens.mask)
    truncated, masked = nowhere, nowhere
    if of.correction != "none" and of.correction_bound == "truncate":
        value, truncated = ratio.clamp(max=of.truncation), ratio > of.truncation
    if of.correction != "none" and of.correction_bound == "mask":
        masked = (ratio < of.mask_low) | (ratio > of.mask_high)
    masked = (masked | filtered(tokens, of) | tokens.dropped) & tokens.mask
    return Weight(torch.where(masked | ~tokens.mask, 0.0, value), truncated & ~masked & tokens.mask, masked)


def log_ratio(off: Tensor, tokens: Tokens, level: str) -> Tensor:
    """log ρ at its level, (N,) → (N,): of the token, of its prefix up to itself, of its sequence, or their mean."""
    if level == "token":
        return off
    if level == "prefix":
        return running(off, tokens.sequences)
    if level == "sequence":
        return total(off, tokens.sequences)
    return mean(off, tokens) if level == "geometric" else torch.zeros_like(off)


def filtered(tokens: Tokens, of: ObjectiveSettings) -> Tensor:
    """The tokens of sequences that are dropped whole, (N,) bool, by log π/μ with π as at the start of the batch.

    `veto`: one that holds a token π has all but given up. `off_policy_mask`: one with A < 0 and a large mean log(μ/π)
    (DeepSeek-V3.2 2025).
    """
    off = tokens.anchor - tokens.behaviour
    out = torch.zeros_like(tokens.mask)
    if of.veto is not None:
        given_up = tokens.mask & (off < math.log(of.veto))
        out |= total(given_up.to(off.dtype), tokens.sequences) > 0
    if of.off_policy_mask is not None:
        out |= (tokens.advantages < 0) & (-mean(off, tokens) > of.off_policy_mask)
    return out


@torch.no_grad()
def second_moment_mask(tokens: Tokens, limit: float) -> Tensor:
    """The harmful tokens to drop, largest |log ρ| first, until the mean (log ρ)² of the rest is ≤ limit; (N,) bool.

    Equal ones, as the first tokens of answers that begin alike, go together: which stands first must not matter.

    Harmful: A > 0 and ρ > 1, or A < 0 and ρ < 1, where a step would go further off. A ratio within 0.7 … 1.5 always
    stays. Needs every token of the batch at once. M2PO, Zheng et al. 2025.
    """
    off = tokens.anchor - tokens.behaviour
    harmful = tokens.mask & (tokens.advantages * off > 0)
    squares = torch.where(harmful, off, 0.0) ** 2
    worst, count = torch.sort(squares, descending=True).values, harmful.sum()
    place = torch.arange(len(off), device=off.device)
    rest = (worst.sum() - torch.cumsum(worst, 0) + worst) / (count - place).clamp(min=1)  # mean from here on
    over = worst[(rest > limit) & (place < count)]
    low, high = M2PO_LEAST
    ratio = torch.exp(held(off))
    drop = harmful & (squares >= (over.min() if len(over) else math.inf))
    return drop & ((ratio < low) | (ratio > high))


def normaliser(weight: Tensor, tokens: Tokens, of: ObjectiveSettings) -> Tensor:
    """What `normalise_weights` divides by, a number: the mean weight of tokens, or of sequences where it is theirs."""
    share = tokens.mask.to(weight.dtype)
    if of.correction in ("sequence", "geometric"):
        share = share / total(share, tokens.sequences).clamp(min=1.0)
    mean_weight = (weight * share).sum() / share.sum().clamp(min=1.0)
    return torch.where(mean_weight > 0, mean_weight, 1.0)
