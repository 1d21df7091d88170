"""What is exactly true of an expected gradient, and how far off the rest is, by summing over all there is.

Every statement is made of the learner's own functions, in the small world of `enumeration.py`. Where a formula is
wrong in a way that is easily written, the wrong one stands here too, and the same measure has to find it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from math import comb, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from consumer.objective.settings import ObjectiveSettings
from tests.consumer.enumeration import EXACT, Bench, Members, World, bench, cosine, error, groups, objective

ON_POLICY, STALE = bench(0.0), bench(0.8)
SEQUENCE_IS = objective(correction="sequence")
Z_SCORE: dict[str, Any] = {"baseline": "mean", "scale": "group_std", "std_eps": 0.0}


def inexact(of: ObjectiveSettings, size: int = 1) -> float:
    """Relative error of the expected gradient of a stale batch."""
    return error(STALE.found(of, size), STALE.policy_gradient)


# -- the world --------------------------------------------------------------------------------------------------------


def test_the_world_is_all_of_it() -> None:
    world = World()
    assert len(world) == 15
    assert sorted(set(world.lengths.tolist())) == [1, 2, 3]
    for off in (0.0, 0.8, 3.0):
        total = bench(off).world.probabilities(bench(off).behaviour).sum()
        assert float(total) == pytest.approx(1.0, abs=1e-14)


def test_the_order_of_a_group_says_nothing_so_groups_may_be_taken_up_to_order() -> None:
    of, chance = objective(correction="prefix", **Z_SCORE), STALE.world.probabilities(STALE.behaviour)
    ordered = ((pair, chance[list(pair)].prod()) for pair in product(range(len(chance)), repeat=2))
    assert error(STALE.found(of, 2, ordered), STALE.found(of, 2)) < EXACT


# -- exact ------------------------------------------------------------------------------------------------------------


def test_reinforce_on_its_own_samples_has_the_gradient_of_j() -> None:
    assert error(ON_POLICY.found(objective()), ON_POLICY.policy_gradient) < EXACT


@pytest.mark.parametrize("surrogate", ["pg", "ppo"])
@pytest.mark.parametrize("off", [0.3, 0.8, 2.0])
def test_the_ratio_of_the_whole_sequence_corrects_for_whoever_sampled(off: float, surrogate: str) -> None:
    stale = bench(off)
    found = stale.found(objective(correction="sequence", surrogate=surrogate))
    assert error(found, stale.policy_gradient) < EXACT


@pytest.mark.parametrize("off", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("size", [2, 3])
def test_dr_grpo_falls_short_by_one_in_g_and_leave_one_out_does_not(size: int, off: float) -> None:
    """A baseline that holds the sample itself takes (G − 1)/G of the gradient; one of the others alone takes nothing,
    although they come from another policy."""
    stale = bench(off)
    for baseline, share in (("mean", (size - 1) / size), ("leave_one_out", 1.0)):
        found = stale.found(objective(baseline=baseline, correction="sequence"), size)
        assert error(found, share * stale.policy_gradient) < EXACT


@pytest.mark.parametrize(("preset", "share"), [("rloo", 1.0), ("dr_grpo", 2 / 3)])
def test_the_presets_of_that_name_keep_the_promise_on_policy(preset: str, share: float) -> None:
    of = ObjectiveSettings.model_validate({"preset": preset, "constant_length": 1})
    assert error(ON_POLICY.found(of, 3), share * ON_POLICY.policy_gradient) < EXACT


@pytest.mark.parametrize("after", [1, 2])
def test_a_sequence_of_two_versions_needs_what_each_token_was_sampled_with(after: int) -> None:
    """Refreshed in flight: the first `after` tokens are one version's, the others the next one's."""
    world, old = STALE.world, STALE.behaviour
    new = world.logprobs(STALE.theta + world.policy(seed=4, scale=0.8))
    mixed = replace(STALE, behaviour=torch.where(world.place < after, old, new))
    sampled = world.probabilities(mixed.behaviour)
    assert error(mixed.found(SEQUENCE_IS, batches=groups(sampled, 1)), mixed.policy_gradient) < EXACT
    for one in (old, new):
        told = replace(STALE, behaviour=one)
        assert error(told.found(SEQUENCE_IS, batches=groups(sampled, 1)), told.policy_gradient) > 0.05


# -- a weight that is differentiated ----------------------------------------------------------------------------------


def of_one(where: Bench, loss: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    """Expected direction, as `Bench.found`, of a loss of (log π, log μ, r) of a single sequence."""

    def of(members: Members, logprobs: Tensor) -> Tensor:
        rows = where.world.rows(members)
        return loss(logprobs[rows], where.behaviour[rows], float(where.rewards[members[0]]))

    return where.expectation(of)


def test_a_weight_that_is_differentiated_beside_the_log_prob_is_found_out() -> None:
    def right(pi: Tensor, mu: Tensor, reward: float) -> Tensor:
        return -torch.exp((pi - mu).sum()).detach() * reward * pi.sum()

    def wrong(pi: Tensor, mu: Tensor, reward: float) -> Tensor:
        return -torch.exp((pi - mu).sum()) * reward * pi.sum()

    assert error(of_one(STALE, right), STALE.policy_gradient) < EXACT
    assert error(of_one(STALE, wrong), STALE.policy_gradient) > 1.0


# -- not exact --------------------------------------------------------------------------------------------------------

# What each leaves of an error in this world, measured; another world has other figures, but not zero.
LEFT = {
    "none": (objective(), 1, 1.140),
    "clip": (objective(surrogate="ppo", proximal="behaviour"), 1, 0.974),
    "geometric": (objective(correction="geometric"), 1, 0.597),
    "normalised-2": (objective(correction="sequence", normalise_weights=True), 2, 0.674),
    "normalised-3": (objective(correction="sequence", normalise_weights=True), 3, 0.457),
    "token": (objective(correction="token"), 1, 0.132),
    "prefix": (objective(correction="prefix"), 1, 0.104),
    "truncated": (objective(correction="sequence", correction_bound="truncate", truncation=2.0), 1, 0.030),
}


@pytest.mark.parametrize("name", LEFT)
def test_the_others_leave_an_error_of_known_size(name: str) -> None:
    of, size, expected = LEFT[name]
    assert inexact(of, size) == pytest.approx(expected, abs=1e-3)


def test_each_finer_ratio_leaves_less_and_none_leaves_most() -> None:
    """So it is in this world; there are others in which a token's ratio is better than its prefix's, or than none."""
    errors = [inexact(LEFT[name][0]) for name in ("none", "token", "prefix", "truncated")]
    assert all(more > less for more, less in pairwise(errors))
    assert errors[-1] > 0.01


# -- bounds are on the ratio ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_bounds_on_the_inverse_ratio_are_found_out(level: str) -> None:
    """It takes bounds that differ from their own inverses: a half and two look right either way."""
    far = bench(1.5)

    def learner(bound: str, **bounds: float) -> Tensor:
        return far.found(objective(correction=level, correction_bound=bound, **bounds))

    def bounded(weight: Callable[[Tensor], Tensor]) -> Tensor:
        """Of −Σ_t w(ρ)·r·log π_t, ρ = π/μ of the token or of the sequence."""

        def loss(pi: Tensor, mu: Tensor, reward: float) -> Tensor:
            off = (pi - mu).detach()
            return -(weight(torch.exp(off if level == "token" else off.sum().expand_as(off))) * reward * pi).sum()

        return of_one(far, loss)

    masked = learner("mask", mask_low=0.5, mask_high=5.0)
    assert error(masked, bounded(lambda ratio: ratio * ((ratio >= 0.5) & (ratio <= 5.0)))) < EXACT
    assert error(masked, bounded(lambda ratio: ratio * ((1 / ratio >= 0.5) & (1 / ratio <= 5.0)))) > 1.0
    alike = learner("mask", mask_low=0.5, mask_high=2.0)
    assert error(alike, bounded(lambda ratio: ratio * ((1 / ratio >= 0.5) & (1 / ratio <= 2.0)))) < EXACT
    truncated = learner("truncate", truncation=1.5)
    assert error(truncated, bounded(lambda ratio: ratio.clamp(max=1.5))) < EXACT
    assert error(truncated, bounded(lambda ratio: 1 / (1 / ratio).clamp(max=1.5))) > 0.3


# -- scale and length -------------------------------------------------------------------------------------------------


def test_a_z_score_keeps_the_direction_only_roughly() -> None:
    found = ON_POLICY.found(objective(**Z_SCORE), 3)
    assert 0.9 < cosine(found, ON_POLICY.policy_gradient) < 0.99
    assert abs(float(found.norm() / ON_POLICY.policy_gradient.norm()) - 1) > 0.1


def test_one_over_length_turns_the_gradient_and_a_constant_does_not() -> None:
    """`token_mean` divides by the tokens that a batch happens to have: a bias too, but one that goes as it grows."""
    angle = {}
    for kind in ("constant", "sequence_mean", "token_mean"):
        of = objective(aggregation=kind, baseline="leave_one_out")
        angle[kind] = [cosine(ON_POLICY.found(of, size), ON_POLICY.policy_gradient) for size in (2, 3)]
    assert angle["constant"] == pytest.approx([1.0, 1.0], abs=EXACT)
    assert angle["sequence_mean"] == pytest.approx([0.901, 0.901], abs=1e-3)
    assert angle["sequence_mean"][1] < angle["token_mean"][0] < angle["token_mean"][1] < 0.999


def bernoulli_factor(p: float, size: int) -> float:
    """E[Σ_i A_i(r_i − p)]/(G·p(1 − p)): with k of G rewards 1, Σ_i A_i r_i = k(1 − k/G)/s, s² = k(G − k)/(G(G − 1))."""
    chance = [comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]
    spread = sum(chance[k] * sqrt(k * (size - k)) for k in range(1, size))
    return spread * sqrt(size * (size - 1)) / size**2 / (p * (1 - p))


def coin(p: float) -> Bench:
    """Two sequences of one token, of which the first is rewarded and has probability p."""
    theta = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    world = World(letters=1, longest=1)
    return Bench(world, theta, world.logprobs(theta), torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("p", "size", "factor"),
    [(0.05, 2, 0.7071), (0.5, 2, 0.7071), (0.9, 2, 0.7071), (0.05, 8, 2.313), (0.5, 8, 1.736), (0.9, 8, 2.177)],
)
def test_a_z_score_of_successes_stretches_what_is_easy_and_what_is_hard(p: float, size: int, factor: float) -> None:
    """With two rewards the direction stays; the length is that of G, and of p as soon as G > 2."""
    found = coin(p).found(objective(**Z_SCORE), size)
    assert error(found, bernoulli_factor(p, size) * coin(p).policy_gradient) < EXACT
    assert bernoulli_factor(p, size) == pytest.approx(factor, abs=5e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_and_so_it_does_where_success_takes_several_tokens(size: int) -> None:
    passed = replace(ON_POLICY, rewards=(ON_POLICY.rewards > 0.5).double())
    p = float(passed.objective(passed.behaviour))
    assert 0.1 < p < 0.9
    found = passed.found(objective(**Z_SCORE), size)
    assert error(found, bernoulli_factor(p, size) * passed.policy_gradient) < EXACT
