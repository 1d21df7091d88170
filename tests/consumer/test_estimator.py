"""I7: what the trainer makes of a batch equals the slow oracle, value and gradient.

In float64 on a GPT-2, where agreement means 1e-10 and finite differences are sharp; in float32 on a Llama, the family
that is trained for real. Cuts and orders: test_estimator_cuts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.objective.settings import ObjectiveSettings
from tests.consumer import oracle
from tests.consumer.groups import gpt2, llama, recipe
from tests.consumer.watched import GROUPS, OBJECTIVES, TOKENS, VERSION, Update, flat, trained

DEFAULT = ObjectiveSettings()


def loss_of(groups: Sequence[RolloutGroup], logprobs: oracle.Logprobs, anchor: oracle.Logprobs | None = None) -> float:
    """The oracle's loss of the default objective."""
    answers = oracle.answers_of(groups, logprobs, anchor, version=VERSION)
    return oracle.objective(answers, DEFAULT, limit=16).total


def loss_at(
    module: Any, weights: Tensor, groups: Sequence[RolloutGroup], anchor: oracle.Logprobs, temperature: float = 1.0
) -> float:
    """The oracle's loss for a model with these weights; π_prox stays `anchor`, and with it the correction."""
    torch.nn.utils.vector_to_parameters(weights, [p for p in module.parameters() if p.requires_grad])
    return loss_of(groups, oracle.logprobs_of(module, groups, temperature), anchor)


def directions(update: Update) -> list[Tensor]:
    """Where to look: three random directions, and the gradient's own."""
    generator = torch.Generator().manual_seed(5)
    raw = [torch.randn(update.gradient.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [d / d.norm() for d in (*raw, update.gradient)]


def assert_gradient(
    module: Any, update: Update, groups: Sequence[RolloutGroup], anchor: oracle.Logprobs, temperature: float = 1.0
) -> None:
    """The gradient's component along each direction is the oracle's central difference."""
    step = 1e-6
    for direction in directions(update):
        up, down = (
            loss_at(module, update.weights + sign * step * direction, groups, anchor, temperature) for sign in (1, -1)
        )
        assert float(update.gradient @ direction) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)


# -- against the oracle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_gradient_of_a_real_model_are_the_oracles(temperature: float) -> None:
    module = gpt2()
    anchor = oracle.logprobs_of(module, GROUPS, temperature)
    stats, (update,) = trained(module, recipe(temperature=temperature))
    assert stats.loss == pytest.approx(loss_of(GROUPS, anchor), rel=1e-10)
    assert 0.1 < stats.truncation_fraction < 0.9, "the correction's cap acts at some tokens and not at others"
    assert_gradient(module, update, GROUPS, anchor, temperature)


def test_in_float32_the_family_that_is_trained_agrees_to_rounding() -> None:
    module = llama()
    expected = loss_of(GROUPS, oracle.logprobs_of(module, GROUPS))
    assert trained(module, recipe())[0].loss == pytest.approx(expected, rel=1e-4)


def test_with_two_minibatches_the_anchor_is_the_policy_before_both_and_the_clip_acts() -> None:
    module = gpt2()
    before = oracle.logprobs_of(module, GROUPS)
    stats, (first, second) = trained(module, recipe({"minibatches_per_batch": 2, "learning_rate": 0.02}))
    parts = [[GROUPS[0], GROUPS[2]], [GROUPS[1]]]
    anchors = [[before[0], before[2]], [before[1]]]
    expected = [loss_at(module, u.weights, p, a) for u, p, a in zip((first, second), parts, anchors, strict=True)]
    assert stats.loss == pytest.approx(sum(expected) / 2, rel=1e-10)
    assert stats.clip_fraction > 0.05, "the second update starts away from the anchor"
    assert_gradient(module, first, parts[0], anchors[0])
    assert_gradient(module, second, parts[1], anchors[1])


def test_the_denominator_counts_the_tokens_of_the_whole_batch_those_without_advantage_too() -> None:
    """A degenerate group adds nothing to the sum and all its tokens to the count."""
    idle = RolloutGroup("idle", "train", 0, GROUPS[0].prompt, (GROUPS[0].rollouts[0],) * 3)
    alone, _ = trained(gpt2(), recipe())
    diluted, _ = trained(gpt2(), recipe(), [*GROUPS, idle])
    assert diluted.tokens == TOKENS + idle.completion_tokens
    assert diluted.loss * diluted.tokens == pytest.approx(alone.loss * alone.tokens, rel=1e-10)


def plainly(module: Any, groups: Sequence[RolloutGroup]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (N,), differentiable, one completion at a time behind its prompt."""
    logprobs, entropies = [], []
    for group in groups:
        for r in group.rollouts:
            ids = torch.tensor([[*group.prompt.tolist(), *r.tokens.tolist()]])
            rows = torch.log_softmax(module(input_ids=ids).logits[0, len(group.prompt) - 1 : -1], -1)  # (T, V)
            logprobs.append(rows[range(len(r.tokens)), r.tokens.tolist()])
            entropies.append(-(rows.exp() * rows).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def nested(values: Tensor) -> oracle.Logprobs:
    left = iter(values.tolist())
    return [[[next(left) for _ in r.tokens] for r in group.rollouts] for group in GROUPS]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objectives_gradient_by_all_weights_is_the_oracles_by_log_probs_chained_by_hand(name: str) -> None:
    """Σ_t ∂loss/∂log π_t·∇log π_t: the first factor the oracle's, in closed form, the second torch's."""
    of, module = ObjectiveSettings.model_validate(OBJECTIVES[name]), gpt2()
    logprobs, entropies = plainly(module, GROUPS)
    now = nested(logprobs)
    reference = oracle.logprobs_of(gpt2(seed=1), GROUPS)
    answers = oracle.answers_of(GROUPS, now, None, reference, nested(entropies), VERSION)
    expected = oracle.objective(answers, of, limit=16)
    by_logprobs, by_entropy = (torch.tensor(g, dtype=torch.float64) for g in (expected.gradient, expected.by_entropy))
    ((by_logprobs * logprobs).sum() + (by_entropy * entropies).sum()).backward()
    by_hand = flat([p.grad for p in module.parameters() if p.grad is not None])
    stats, (update,) = trained(gpt2(), recipe(objective=OBJECTIVES[name]))
    assert stats.loss == pytest.approx(expected.total, rel=1e-10)
    assert float((update.gradient - by_hand).abs().max()) <= 1e-10 * float(by_hand.abs().max())
    assert stats.clip_fraction == pytest.approx(sum(expected.clipped) / TOKENS)
    assert stats.truncation_fraction == pytest.approx(sum(expected.truncated) / TOKENS)
    assert stats.mask_fraction == pytest.approx(sum(expected.masked) / TOKENS)


@pytest.mark.parametrize("name", ["loglinear", "normalised", "m2po, counted after", "grpo", "k1 in the reward"])
def test_each_of_two_updates_is_the_oracles_at_the_weights_that_it_met(name: str) -> None:
    """The second is of the other half of the batch: anchor as before both, loglinear's with half the updates made."""
    of = ObjectiveSettings.model_validate(OBJECTIVES[name])
    start, reference = (oracle.logprobs_of(gpt2(seed), GROUPS) for seed in (0, 1))
    learner = {"minibatches_per_batch": 2, "learning_rate": 0.02}
    _, updates = trained(gpt2(), recipe(learner, OBJECTIVES[name]))
    part = torch.tensor([g % 2 for g, group in enumerate(GROUPS) for r in group.rollouts for _ in r.tokens])
    for number, update in enumerate(updates):
        module = gpt2()
        torch.nn.utils.vector_to_parameters(update.weights, module.parameters())
        logprobs, _ = plainly(module, GROUPS)
        answers = oracle.answers_of(GROUPS, nested(logprobs), start, reference, None, VERSION)
        expected = torch.tensor(oracle.objective(answers, of, limit=16, minibatches=2).gradient, dtype=torch.float64)
        (expected * logprobs)[part == number].sum().backward()
        by_hand = flat([p.grad for p in module.parameters() if p.grad is not None])
        assert float((update.gradient - by_hand).abs().max()) <= 1e-10 * float(by_hand.abs().max()), number
