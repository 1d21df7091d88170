"""What each KL estimator pulls at: its expected gradient against the gradients of the divergences themselves.

Three of them, by enumeration. `whole`: KL(π‖π_ref) of sequences. `reverse` and `forward`: KL(π‖π_ref) and KL(π_ref‖π)
of the next token, summed over the states that a policy visits, with the visits held fast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from consumer.objective.kl import in_reward, penalty
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens
from tests.consumer.enumeration import EXACT, Bench, Members, bench, error, objective

BETA = 0.7


def with_reference(off: float) -> Bench:
    """As `bench`, and a π_ref half a step from π."""
    plain = bench(off)
    return replace(plain, reference=plain.theta + plain.world.policy(seed=77, scale=0.5))


ON_POLICY, STALE = with_reference(0.0), with_reference(0.8)
NO_REWARD = torch.zeros(len(ON_POLICY.world), dtype=torch.float64)


def reference(of: Bench) -> Tensor:
    """log π_ref (R,)."""
    assert of.reference is not None
    return of.world.logprobs(of.reference)


def whole(of: Bench, logprobs: Tensor) -> Tensor:
    return of.world.probabilities(logprobs) @ of.world.sums(logprobs - reference(of))


def at_visits(of: Bench, logprobs: Tensor, visitor: Tensor, *, forward: bool = False) -> Tensor:
    """Σ_s visits(s)·KL(s), `visitor` the log-probs (R,) of the policy that visits; differentiable in `logprobs` alone.

    A state's tokens stand in the table as often as there are sequences through them, so each is taken once.
    """
    world = of.world
    once = {(s, a): row for row, (s, a) in enumerate(zip(world.prefix.tolist(), world.token.tolist(), strict=True))}
    rows = torch.tensor(list(once.values()))
    pi, ref = logprobs[rows], reference(of)[rows]
    each = ref.exp() * (ref - pi) if forward else pi.exp() * (pi - ref)
    return world.visits(visitor.detach())[world.prefix[rows]] @ each


def pull(of: Bench, **axes: Any) -> Tensor:
    """Expected direction of the learner when there is nothing but the KL, flat: −β∇KL, if it is right."""
    return replace(of, rewards=NO_REWARD).found(objective(kl_coefficient=BETA, **axes))


def pi(of: Bench) -> Tensor:
    return of.world.logprobs(of.theta)


def reverse(of: Bench, visitor: Tensor) -> Tensor:
    return of.truth(lambda logprobs: at_visits(of, logprobs, visitor))


def forward(of: Bench, visitor: Tensor) -> Tensor:
    return of.truth(lambda logprobs: at_visits(of, logprobs, visitor, forward=True))


# -- k1 ---------------------------------------------------------------------------------------------------------------


def test_k1_has_the_value_of_the_divergence_and_as_a_loss_no_gradient() -> None:
    """So it is not offered as one; the wrong loss stands here."""

    def wrong(members: Members, logprobs: Tensor) -> Tensor:
        rows = ON_POLICY.world.rows(members)
        return (logprobs[rows] - reference(ON_POLICY)[rows]).sum()

    assert float(ON_POLICY.expectation(wrong).norm()) < EXACT
    assert float(ON_POLICY.truth(lambda logprobs: whole(ON_POLICY, logprobs)).norm()) > 0.05
    chance = ON_POLICY.world.probabilities(pi(ON_POLICY))
    costs = in_reward("k1_reward", pi(ON_POLICY), reference(ON_POLICY), *everywhere(ON_POLICY))
    assert float(chance @ costs[ON_POLICY.world.place == 0]) == pytest.approx(
        float(whole(ON_POLICY, pi(ON_POLICY))), rel=EXACT
    )


def everywhere(of: Bench) -> tuple[Tensor, Tensor]:
    """Mask and sequences (R,) of the whole table."""
    return torch.ones(len(of.world.token), dtype=torch.bool), of.world.sequence


@pytest.mark.parametrize("kind", ["k1_reward", "k1_reward_to_go"])
def test_k1_in_the_reward_has_the_gradient_of_the_sequences_divergence(kind: str) -> None:
    """With the rewards beside it, and whoever sampled, if the sequence's ratio pays for that."""
    for where, level in ((ON_POLICY, "none"), (STALE, "sequence")):
        truth = where.policy_gradient - BETA * where.truth(lambda logprobs: whole(where, logprobs))
        of = objective(kl=kind, kl_coefficient=BETA, correction=level)
        assert error(where.found(of), truth) < EXACT
        over_the_others = objective(kl=kind, kl_coefficient=BETA, correction=level, baseline="leave_one_out")
        assert error(where.found(over_the_others, 2), truth) < EXACT
    assert error(pull(ON_POLICY, kl=kind), -BETA * reverse(ON_POLICY, pi(ON_POLICY))) > 0.01, "the visits matter"


# -- in the loss, on policy -------------------------------------------------------------------------------------------


def test_k2_in_the_loss_has_the_gradient_of_the_reverse_divergence_at_held_visits() -> None:
    assert error(pull(ON_POLICY, kl="k2"), -BETA * reverse(ON_POLICY, pi(ON_POLICY))) < EXACT
    assert error(pull(ON_POLICY, kl="k2"), -BETA * forward(ON_POLICY, pi(ON_POLICY))) > 0.05


def test_k3_in_the_loss_has_the_gradient_of_the_forward_divergence() -> None:
    assert error(pull(ON_POLICY, kl="k3"), -BETA * forward(ON_POLICY, pi(ON_POLICY))) < EXACT
    assert error(pull(ON_POLICY, kl="k3"), -BETA * reverse(ON_POLICY, pi(ON_POLICY))) > 0.05


def test_k3_with_its_ratio_has_that_of_the_reverse_divergence_again() -> None:
    assert error(pull(ON_POLICY, kl="k3_ratio"), -BETA * reverse(ON_POLICY, pi(ON_POLICY))) < EXACT
    assert error(pull(ON_POLICY, kl="k3_ratio"), -BETA * forward(ON_POLICY, pi(ON_POLICY))) > 0.05


@pytest.mark.parametrize("kind", ["k2", "k3", "k3_ratio"])
def test_the_divergence_and_the_reward_do_not_touch(kind: str) -> None:
    """The whole gradient is the sum of both parts."""
    both = ON_POLICY.found(objective(kl=kind, kl_coefficient=BETA))
    assert error(both, ON_POLICY.policy_gradient + pull(ON_POLICY, kl=kind)) < EXACT


# -- in the loss, off policy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["prefix", "sequence"])
@pytest.mark.parametrize("kind", ["k2", "k3", "k3_ratio"])
def test_off_policy_it_takes_the_ratio_of_all_that_came_before(kind: str, level: str) -> None:
    truth = (forward if kind == "k3" else reverse)(STALE, pi(STALE))
    assert error(pull(STALE, kl=kind, correction=level), -BETA * truth) < EXACT


@pytest.mark.parametrize("kind", ["k2", "k3", "k3_ratio"])
def test_a_tokens_own_ratio_weighs_the_states_as_the_sampler_visits_them(kind: str) -> None:
    """Exact in its way, and not the divergence that was meant. Without any ratio it is not even that."""
    of_which = forward if kind == "k3" else reverse
    found, meant = pull(STALE, kl=kind, correction="token"), -BETA * of_which(STALE, pi(STALE))
    assert error(found, -BETA * of_which(STALE, STALE.behaviour)) < EXACT
    assert error(found, meant) > 0.05
    assert error(pull(STALE, kl=kind), meant) > 0.05


def test_the_ratio_to_the_sampler_within_k3_is_a_tokens_ratio_too() -> None:
    """π_prox = μ, as in DeepSeek-V3.2."""
    found = pull(STALE, kl="k3_ratio", proximal="behaviour")
    assert error(found, -BETA * reverse(STALE, STALE.behaviour)) < EXACT
    assert error(found, -BETA * reverse(STALE, pi(STALE))) > 0.05


# -- max(k1, 0) -------------------------------------------------------------------------------------------------------


def near(epsilon: float) -> Bench:
    """A π_ref that is ε from π."""
    assert ON_POLICY.reference is not None
    return replace(ON_POLICY, reference=ON_POLICY.theta + epsilon * (ON_POLICY.reference - ON_POLICY.theta))


def clipped_at_zero(of: Bench, logprobs: Tensor) -> Tensor:
    """Σ_t max(k1, 0) (S,), the wrong one."""
    return of.world.sums((logprobs - reference(of)).clamp(min=0.0))


def test_k1_clipped_at_zero_is_large_where_the_divergence_is_small() -> None:
    """Half as far: half of it is left, of a divergence a quarter."""
    values = {epsilon: whole(near(epsilon), pi(near(epsilon))) for epsilon in (0.02, 0.01)}
    wrong = {e: ON_POLICY.world.probabilities(pi(near(e))) @ clipped_at_zero(near(e), pi(near(e))) for e in values}
    assert float(values[0.02] / values[0.01]) == pytest.approx(4.0, abs=0.1)
    assert float(wrong[0.02] / wrong[0.01]) == pytest.approx(2.0, abs=0.1)
    assert float(wrong[0.01] / values[0.01]) > 50


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
def test_and_its_gradient_in_the_reward_is_another_one(epsilon: float) -> None:
    where = near(epsilon)

    def wrong(members: Members, logprobs: Tensor) -> Tensor:
        cost = clipped_at_zero(where, logprobs.detach())[members[0]]
        return cost * logprobs[where.world.rows(members)].sum()

    truth = where.truth(lambda logprobs: whole(where, logprobs))
    assert error(pull(where, kl="k1_reward"), -BETA * truth) < EXACT
    assert error(where.expectation(wrong), -truth) > 0.1


def test_none_of_the_reward_kinds_is_a_part_of_the_loss() -> None:
    """Or it would be there twice."""
    batch = Tokens(
        pi(ON_POLICY), pi(ON_POLICY), ON_POLICY.behaviour, ON_POLICY.behaviour, ON_POLICY.world.place,
        ON_POLICY.world.sequence, *[everywhere(ON_POLICY)[0]] * 2,
    )  # fmt: skip
    for kind in ("k1_reward", "k1_reward_to_go"):
        of = ObjectiveSettings(kl=kind, kl_coefficient=1.0)
        assert not penalty(of.kl, batch, batch.anchor, reference(ON_POLICY)).any()
