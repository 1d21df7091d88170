"""The loss: the axes put together, token by token.

Invariant: the loss of a batch is a plain sum over its tokens of what is returned here, with coefficients that were
fixed before the first of them was seen; so no split into micro-batches or ranks and no order can change it.
Refuses to know how tokens are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consumer.objective import kl
from consumer.objective.correction import token_weights
from consumer.objective.proximal import proximal_logprobs
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.surrogate import SURROGATES
from consumer.objective.tokens import Tokens


@dataclass(frozen=True)
class Terms:
    """Per-token parts of the loss, each (N,): `loss` is differentiable, the others are for diagnosis."""

    loss: Tensor
    weight: Tensor
    clipped: Tensor
    truncated: Tensor
    masked: Tensor


def token_terms(
    tokens: Tokens,
    coefficients: Tensor,
    of: ObjectiveSettings,
    *,
    progress: float = 0.0,
    divisor: float = 1.0,
    reference: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Terms:
    """−c·w/divisor·(gain − β·KL + η·H), all (N,).

    `divisor` is what `normalise_weights` asks for; `reference` log π_ref and `entropy` H (differentiable) are needed
    where the settings have a KL or an entropy bonus. With one minibatch a batch π_prox is sg(π), hence ρ = 1: no clip
    acts then, and the gradient is that of −c·w·A·log π.
    """
    if (of.needs_reference and reference is None) or (of.entropy_bonus and entropy is None):
        raise ValueError("the objective has a KL or an entropy bonus, and nothing to take it of")
    tokens = tokens.clean()
    proximal = proximal_logprobs(tokens, of.proximal, progress)
    weight = token_weights(tokens, proximal, of)
    value, clipped, capped = SURROGATES[of.surrogate](tokens, proximal, of)
    if reference is not None:
        value = value - of.kl_coefficient * kl.penalty(of.kl, tokens, proximal, reference)
    if entropy is not None:
        value = value + of.entropy_bonus * torch.where(tokens.mask, entropy, 0.0)
    share = coefficients.to(value.dtype) * weight.value / divisor
    loss = torch.where(weight.masked | ~tokens.mask, 0.0, -share * value)
    truncated = weight.truncated if capped is None else weight.truncated | (capped & tokens.mask & ~weight.masked)
    return Terms(loss, weight.value, clipped & tokens.mask, truncated, weight.masked)
