"""Surrogates: what is maximised, token by token, given an advantage.

Invariant: where π = π_prox = μ the gradient of every one of them is the policy gradient A·∇log π (a token's of gspo,
gmpo and oapl: its mean over the sequence, which comes to the same over the sequence). Refuses to know groups, weights
and means over a batch.

In all of them ρ = π/π_prox (N,), A the advantage (N,); each returns the gain (N,), where the surrogate itself took a
token's gradient away (N,) bool, and where it held a weight of its own at a cap (N,) bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens, held, importance_ratio, mean, total

ROUNDING = 1e-6  # of a ratio that is 1


class Gain(NamedTuple):
    """`value` (N,) is differentiable; `clipped` (N,) bool: no gradient comes from this token because of a bound.

    `truncated` (N,) bool: this token's gradient is weighted by a cap and not by ρ; None: by ρ everywhere.
    """

    value: Tensor
    clipped: Tensor
    truncated: Tensor | None = None


def pg(tokens: Tokens, _: Tensor, __: ObjectiveSettings) -> Gain:
    """A·log π. Williams 1992."""
    return Gain(tokens.advantages * tokens.logprobs, _nowhere(tokens))


def ppo(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high)·A). Schulman et al. 2017; two bounds: DAPO, Yu et al. 2025.

    `dual_clip` c: for A < 0 at least cA (Ye et al. 2020). `ratio_bound` δ: for A < 0 ρ is held at δ (INTELLECT-2).
    """
    rho, gains = importance_ratio(tokens.logprobs, proximal), tokens.advantages
    negative = gains < 0
    hit = clipped(rho.detach(), gains, of.clip_low, of.clip_high)
    bounded = rho
    if of.ratio_bound is not None:
        bounded = torch.where(negative, rho.clamp(max=of.ratio_bound), rho)
        hit |= negative & (rho.detach() > of.ratio_bound)
    value = torch.minimum(bounded * gains, torch.clamp(rho, 1 - of.clip_low, 1 + of.clip_high) * gains)
    if of.dual_clip is not None:
        value = torch.where(negative, torch.maximum(value, of.dual_clip * gains), value)
        hit |= negative & (rho.detach() > of.dual_clip)
    return Gain(value, hit)


def cispo(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """sg(min(ρ, C))·A·log π: a clipped weight, but every token keeps a gradient. MiniMax-M1 2025; ScaleRL 2025."""
    rho = importance_ratio(tokens.logprobs.detach(), proximal)
    value = rho.clamp(max=of.cispo_cap) * tokens.advantages * tokens.logprobs
    return Gain(value, _nowhere(tokens), rho > of.cispo_cap)


def gspo(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """min(sA, clip(s)·A), s = exp(mean log ρ) of the sequence, the same at each of its tokens. Zheng et al. 2025."""
    s = torch.exp(held(mean(tokens.logprobs - proximal, tokens)))
    gains = tokens.advantages
    value = torch.minimum(s * gains, torch.clamp(s, 1 - of.clip_low, 1 + of.clip_high) * gains)
    return Gain(value, clipped(s.detach(), gains, of.clip_low, of.clip_high))


def gmpo(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """exp(mean of log ρ)·A, log ρ held at ε where A > 0 and at −ε where A < 0: one-sided. Zhao et al. 2025."""
    log_rho, gains = tokens.logprobs - proximal, tokens.advantages
    one_sided = torch.where(gains > 0, log_rho.clamp(max=of.gmpo_clip), log_rho.clamp(min=-of.gmpo_clip))
    hit = ((gains > 0) & (log_rho > of.gmpo_clip)) | ((gains < 0) & (log_rho < -of.gmpo_clip))
    return Gain(torch.exp(held(mean(one_sided, tokens))) * gains, hit.detach())


def sapo(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """(4/τ)·σ(τ(ρ − 1))·A: a gate that closes smoothly on both sides, sooner where A < 0. Gao et al. 2025."""
    rho, gains = importance_ratio(tokens.logprobs, proximal), tokens.advantages
    tau = torch.full_like(rho, of.sapo_temperature_negative)
    tau[gains > 0] = of.sapo_temperature_positive
    return Gain(4 / tau * torch.sigmoid(tau * (rho - 1)) * gains, _nowhere(tokens))


def dppo(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """ρA where the *probability* has not moved too far from μ in A's direction, less a small (log π/μ)². prime-rl 2025.

    Masked: π − μ > d where A > 0, π − μ < −d where A < 0. A ratio cannot say that: 10⁻⁶ and 10⁻⁵ are as good as equal.
    """
    rho, gains = importance_ratio(tokens.logprobs, proximal), tokens.advantages
    moved = torch.exp(held(tokens.logprobs.detach())) - torch.exp(held(tokens.behaviour))
    hit = ((gains > 0) & (moved > of.dppo_mask)) | ((gains < 0) & (moved < -of.dppo_mask))
    penalty = of.dppo_penalty * held(tokens.logprobs - tokens.behaviour) ** 2
    return Gain(torch.where(hit, 0.0, rho * gains) - penalty, hit)


def topr(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """A·log π where A > 0, sg(clip(ρ, 0, 1))·A·log π where A ≤ 0. Le Roux et al. 2025, whose ρ is the trajectory's
    (`ratio_level = "sequence"`)."""
    log_rho = tokens.logprobs.detach() - proximal
    if of.ratio_level == "sequence":
        log_rho = total(log_rho, tokens.sequences)
    rho, negative = torch.exp(held(log_rho)), tokens.advantages <= 0
    weight = torch.where(negative, rho.clamp(max=1.0), 1.0)
    return Gain(weight * tokens.advantages * tokens.logprobs, _nowhere(tokens), negative & (rho > 1 + ROUNDING))


def kimi(tokens: Tokens, proximal: Tensor, of: ObjectiveSettings) -> Gain:
    """A·log π − (τ/2)(log ρ)². Kimi k1.5 2025, whose ρ is the sequence's (`ratio_level = "sequence"`; each of its
    tokens then bears an equal share of the square)."""
    log_rho = held(tokens.logprobs - proximal)
    square = log_rho**2
    if of.ratio_level == "sequence":
        square = held(total(tokens.logprobs - proximal, tokens.sequences)) ** 2 / _length(tokens)
    return Gain(tokens.advantages * tokens.logprobs - of.kimi_temperature / 2 * square, _nowhere(tokens))


def oapl(tokens: Tokens, _: Tensor, of: ObjectiveSettings) -> Gain:
    """−(A − β·log π(y)/μ(y))²/(2β) of the sequence y, an equal share at each token.

    A squared regression of the advantage: its minimum is where β·log(π/μ) = A, whoever sampled. Scaled so that its
    gradient at π = μ is A·∇log π(y).
    """
    log_rho = held(total(tokens.logprobs - tokens.behaviour, tokens.sequences))
    square = (tokens.advantages - of.oapl_beta * log_rho) ** 2 / (2 * of.oapl_beta)
    return Gain(-square / _length(tokens), _nowhere(tokens))


SURROGATES: dict[str, Callable[[Tokens, Tensor, ObjectiveSettings], Gain]] = {
    f.__name__: f for f in (pg, ppo, cispo, gspo, gmpo, sapo, dppo, topr, kimi, oapl)
}


def clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Where PPO's clip takes the gradient away: {A > 0, ρ > 1 + ε_high} ∪ {A < 0, ρ < 1 − ε_low}, (N,) bool."""
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def _length(tokens: Tokens) -> Tensor:
    return total(tokens.mask.to(tokens.logprobs.dtype), tokens.sequences).clamp(min=1.0)


def _nowhere(tokens: Tokens) -> Tensor:
    return torch.zeros_like(tokens.mask)
