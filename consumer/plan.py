"""What is fixed about a batch before its first gradient: advantages, denominators, masks that look at all of it.

Invariant: it depends on the batch alone, not on micro-batches, ranks or order; so the loss is a sum. Refuses to know
the model: log-probs are handed in, for the whole batch, where an axis needs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consumer.objective import kl
from consumer.objective.advantage import advantages, overlong_penalty, whitened
from consumer.objective.aggregation import coefficients
from consumer.objective.correction import normaliser, second_moment_mask, token_weights
from consumer.objective.proximal import proximal_logprobs
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens
from consumer.sheet import Sheet


@dataclass(frozen=True)
class Plan:
    """Per token (N,): `advantages` and `coefficients` float64, `mask` and `dropped` bool, `staleness` and `part` int64
    (the minibatch it belongs to); `divisors`, a number a minibatch."""

    advantages: Tensor
    coefficients: Tensor
    mask: Tensor
    dropped: Tensor
    staleness: Tensor
    part: Tensor
    divisors: list[float]


def plan(
    sheet: Sheet,
    of: ObjectiveSettings,
    *,
    version: int,
    limit: int,
    minibatches: int = 1,
    anchor: Tensor | None = None,
    reference: Tensor | None = None,
) -> Plan:
    """The plan of a batch at policy `version`; `limit` is sampling.max_tokens, group i belongs to minibatch i mod m.

    `anchor` log π (N,) before the first update, where `of.needs_whole_batch`; `reference` log π_ref (N,), where its KL
    is in the reward.
    """
    if of.needs_whole_batch and anchor is None:
        raise ValueError("the objective looks at the whole batch first, and has nothing to look at")
    mask = _mask(sheet, of)
    gains = _advantages(sheet, of, limit, mask, anchor, reference)
    part = sheet.groups % minibatches
    shares, dropped, divisors = torch.zeros(len(sheet), dtype=torch.float64), torch.zeros_like(mask), []
    for number in range(minibatches):
        inside = part == number
        counted = mask[inside] if of.denominator == "after" else torch.ones_like(mask[inside])
        divisors.append(1.0)
        if of.needs_whole_batch and anchor is not None:
            tokens = _tokens(sheet, gains, mask, version, anchor, inside)
            if of.m2po is not None:
                dropped[inside] = second_moment_mask(tokens, of.m2po)
                tokens = _tokens(sheet, gains, mask, version, anchor, inside, dropped)
            weight = token_weights(tokens, proximal_logprobs(tokens, of.proximal, 0.0), of)
            if of.denominator == "after":
                counted = counted & ~weight.masked
            if of.normalise_weights:
                divisors[-1] = float(normaliser(weight.value, tokens, of))
        length = of.constant_length or limit
        shares[inside] = coefficients(of.aggregation, counted, sheet.sequences[inside], sheet.groups[inside], length)
    return Plan(gains, shares, mask, dropped, version - sheet.versions, part, divisors)


def _mask(sheet: Sheet, of: ObjectiveSettings) -> Tensor:
    if of.overlong != "filter":
        return torch.ones(len(sheet), dtype=torch.bool)
    return ~torch.from_numpy(sheet.truncated)[sheet.sequences]


def _advantages(
    sheet: Sheet, of: ObjectiveSettings, limit: int, mask: Tensor, anchor: Tensor | None, reference: Tensor | None
) -> Tensor:
    """A (N,) float64 of each token."""
    rewards = sheet.rewards
    if of.overlong == "soft":
        rewards = rewards + overlong_penalty(sheet.lengths, limit, of.overlong_buffer)
    cost = torch.zeros(len(sheet), dtype=torch.float64)
    if of.kl.startswith("k1_reward") and anchor is not None and reference is not None:
        cost = of.kl_coefficient * kl.in_reward(of.kl, anchor.double(), reference.double(), mask, sheet.sequences)
    if of.kl == "k1_reward":  # one number a sequence, so it is part of the reward before anything is compared
        whole = np.zeros(len(rewards))
        whole[sheet.sequences.numpy()] = cost.numpy()
        rewards, cost = rewards - whole, torch.zeros_like(cost)
    gains = torch.from_numpy(advantages(rewards, sheet.sizes, of, sheet.components))[sheet.sequences] - cost
    return torch.from_numpy(whitened(gains.numpy(), mask.numpy(), of)) if of.scale == "batch_whiten" else gains


def _tokens(
    sheet: Sheet,
    gains: Tensor,
    mask: Tensor,
    version: int,
    anchor: Tensor,
    inside: Tensor,
    dropped: Tensor | None = None,
) -> Tokens:
    """The tokens of one minibatch as the correction sees them before any update."""
    none = torch.zeros_like(mask) if dropped is None else dropped
    staleness = version - sheet.versions
    columns = (
        anchor.double(),
        anchor.double(),
        sheet.behaviour.double(),
        gains,
        staleness,
        sheet.sequences,
        mask,
        none,
    )
    return Tokens(*(column[inside] for column in columns)).clean()
