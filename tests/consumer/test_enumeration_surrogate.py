"""Surrogates by enumeration: all one gradient at ratio 1, and where PPO has none."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from consumer.objective.loss import token_terms
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.surrogate import SURROGATES
from consumer.objective.tokens import Tokens
from tests.consumer.enumeration import EXACT, bench, error, objective

ON_POLICY = bench(0.0)
OF_THE_SEQUENCE = ("gspo", "gmpo", "oapl")  # each token's gain is of the whole sequence
EVERY: list[dict[str, Any]] = [{"surrogate": name} for name in SURROGATES]
EVERY += [{"surrogate": name, "ratio_level": "sequence"} for name in ("topr", "kimi")]


def name(axes: dict[str, Any]) -> str:
    return "-".join(axes.values())


def tokens(logprobs: Tensor, behaviour: Tensor, gains: Tensor, sequences: Tensor) -> Tokens:
    """π_prox is where the test puts it by `proximal = "behaviour"`."""
    size, zeros = len(logprobs), torch.zeros(len(logprobs), dtype=torch.int64)
    there = torch.ones(size, dtype=torch.bool)
    return Tokens(logprobs, logprobs.detach(), behaviour, gains, zeros, sequences, there, ~there)


# -- ratio 1 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", EVERY, ids=name)
def test_at_ratio_one_every_surrogate_climbs_j(axes: dict[str, Any]) -> None:
    of = objective(proximal="behaviour", **axes)
    assert error(ON_POLICY.found(of), ON_POLICY.policy_gradient) < EXACT
    decoupled = objective(proximal="recompute" if axes["surrogate"] != "oapl" else "behaviour", **axes)
    assert error(ON_POLICY.found(decoupled), ON_POLICY.policy_gradient) < EXACT


@pytest.mark.parametrize("axes", EVERY, ids=name)
def test_and_under_another_aggregation_the_plain_gradient_with_its_bias(axes: dict[str, Any]) -> None:
    ours, plain = (
        objective(proximal="behaviour", aggregation="sequence_mean", baseline="mean", **chosen)
        for chosen in (axes, {"surrogate": "pg"})
    )
    assert error(ON_POLICY.found(ours, 2), ON_POLICY.found(plain, 2)) < EXACT
    assert error(ON_POLICY.found(ours, 2), ON_POLICY.policy_gradient) > 0.1


@pytest.mark.parametrize("gain", [1.5, -0.7])
@pytest.mark.parametrize("axes", EVERY, ids=name)
def test_a_token_has_its_own_gradient_or_the_mean_of_its_sequence(axes: dict[str, Any], gain: float) -> None:
    pi = torch.tensor([-0.3, -1.2, -2.0, -0.5], dtype=torch.float64, requires_grad=True)  # sequences of 3 and 1
    batch = tokens(pi, pi.detach(), torch.full_like(pi, gain).detach(), torch.tensor([0, 0, 0, 1]))
    value = SURROGATES[axes["surrogate"]](batch, pi.detach(), objective(proximal="behaviour", **axes)).value
    (slope,) = torch.autograd.grad(value[1], pi)
    mean = [gain / 3, gain / 3, gain / 3, 0.0]
    assert slope.tolist() == pytest.approx(mean if axes["surrogate"] in OF_THE_SEQUENCE else [0.0, gain, 0.0, 0.0])


# -- where PPO has no gradient ----------------------------------------------------------------------------------------


def ppo_slopes(of: ObjectiveSettings, pi: Tensor, behaviour: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """∂loss/∂log π (N,) of tokens that are a sequence each, and where the learner says that it clipped (N,)."""
    leaf = pi.detach().clone().requires_grad_()
    terms = token_terms(tokens(leaf, behaviour, gains, torch.arange(len(leaf))), torch.ones(len(leaf)), of)
    (slope,) = torch.autograd.grad(terms.loss.sum(), leaf)
    return slope, terms.clipped


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (0.5, 0.1), (0.0, 1.5)])
def test_ppo_has_no_gradient_just_where_the_ratio_has_left_in_the_direction_of_the_advantage(
    low: float, high: float
) -> None:
    """{A > 0, ρ > 1 + ε_high} ∪ {A < 0, ρ < 1 − ε_low}, to within 10⁻⁹ of its borders; elsewhere it is ρA."""
    of = objective(surrogate="ppo", proximal="behaviour", clip_low=low, clip_high=high)
    borders = [b + side for b in (1 - low, 1.0, 1 + high) for side in (-1e-9, 1e-9)]
    ratios, signs = (
        torch.tensor(column, dtype=torch.float64)
        for column in zip(*product([0.01, *borders, 0.7, 1.2, 7.0], [-1.3, -1e-6, 1e-6, 2.0]), strict=True)
    )
    behaviour = torch.full_like(ratios, math.log(0.05))
    slope, clipped = ppo_slopes(of, behaviour + ratios.log(), behaviour, signs)
    gone = ((signs > 0) & (ratios > 1 + high)) | ((signs < 0) & (ratios < 1 - low))
    assert (slope == 0).tolist() == gone.tolist() == clipped.tolist()
    assert slope[~gone].tolist() == pytest.approx((-ratios * signs)[~gone].tolist(), rel=1e-9)


def test_and_so_it_is_of_every_token_that_a_stale_policy_can_sample() -> None:
    stale, of = bench(0.8), objective(surrogate="ppo", proximal="behaviour")
    world = stale.world
    pi, gains = world.logprobs(stale.theta), stale.rewards[world.sequence]
    slope, _ = ppo_slopes(of, pi, stale.behaviour, gains)
    ratio = torch.exp(pi - stale.behaviour)
    gone = ((gains > 0) & (ratio > 1.28)) | ((gains < 0) & (ratio < 0.8))
    assert (slope == 0).tolist() == gone.tolist()
    assert 5 < int(gone.sum()) < len(gone) - 5, "some on either side, or nothing was shown"


def test_what_the_clip_leaves_out_is_missing_from_the_expectation() -> None:
    """Without it, PPO on μ is the policy gradient weighted by each token's ratio, with that one's error and no more."""
    stale = bench(0.8)
    open_wide = stale.found(objective(surrogate="ppo", proximal="behaviour", clip_low=0.999999, clip_high=1e9))
    clipped = stale.found(objective(surrogate="ppo", proximal="behaviour"))
    assert error(open_wide, stale.found(objective(correction="token"))) < EXACT
    assert error(clipped, stale.policy_gradient) > 5 * error(open_wide, stale.policy_gradient)
