"""I7: what the trainer makes of a batch equals the slow oracle, however the batch is cut, padded or ordered.

The trainer runs as it is; its gradients are read just before its optimizer takes them. In float64 on a GPT-2, where
agreement means 1e-10 and finite differences are sharp; in float32 on a Llama, the family that is trained for real.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

import consumer.trainer
from broker.schema import RolloutGroup
from consumer.pack import pack
from consumer.settings import LearnerRecipe
from consumer.sheet import Sheet
from consumer.trainer import StepStats, Trainer
from tests.consumer import oracle
from tests.consumer.groups import gpt2, llama, policy_model, random_groups, recipe

GROUPS = random_groups(seed=11)
TOKENS = sum(len(r.tokens) for g in GROUPS for r in g.rollouts)


class Update(NamedTuple):
    """One update as the optimizer met it: all weights, and the gradient, each flat (D,)."""

    weights: Tensor
    gradient: Tensor


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def trained(module: Any, of: LearnerRecipe, groups: Sequence[RolloutGroup] = GROUPS) -> tuple[StepStats, list[Update]]:
    """One step of the production trainer, watched."""
    trainer, updates = Trainer(policy_model(module, of), of), list[Update]()

    def watch(*_: Any) -> None:
        weights = trainer.model.parameters
        updates.append(Update(flat(weights), flat([w.grad for w in weights if w.grad is not None])))

    trainer.optimizer.register_step_pre_hook(watch)
    return trainer.train(groups, policy_version=4), updates


def loss_at(
    module: Any, weights: Tensor, groups: Sequence[RolloutGroup], anchor: oracle.Logprobs, temperature: float = 1.0
) -> float:
    """The oracle's loss for a model with these weights; π_prox stays `anchor`, and with it the correction."""
    torch.nn.utils.vector_to_parameters(weights, [p for p in module.parameters() if p.requires_grad])
    return oracle.loss(groups, oracle.logprobs_of(module, groups, temperature), anchor)


def directions(update: Update) -> list[Tensor]:
    """Where to look: three random directions, and the gradient's own."""
    generator = torch.Generator().manual_seed(5)
    raw = [torch.randn(update.gradient.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [d / d.norm() for d in (*raw, update.gradient)]


def assert_gradient(
    module: Any,
    update: Update,
    groups: Sequence[RolloutGroup],
    anchor: oracle.Logprobs,
    temperature: float = 1.0,
    step: float = 1e-6,
) -> None:
    """The gradient's component along each direction is the oracle's central difference."""
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
    assert stats.loss == pytest.approx(oracle.loss(GROUPS, anchor), rel=1e-10)
    assert 0.1 < stats.truncation_fraction < 0.9, "the correction's cap acts at some tokens and not at others"
    assert_gradient(module, update, GROUPS, anchor, temperature)


def test_in_float32_the_family_that_is_trained_agrees_to_rounding() -> None:
    module = llama()
    expected = oracle.loss(GROUPS, oracle.logprobs_of(module, GROUPS))
    assert trained(module, recipe())[0].loss == pytest.approx(expected, rel=1e-4)


def test_with_one_minibatch_the_gradient_is_that_of_weighted_log_probs() -> None:
    """π_prox = sg(π): −w·A·log π summed by hand, one completion at a time, and differentiated by torch."""
    module = gpt2()
    _, (update,) = trained(module, recipe())
    again = gpt2()
    total = torch.zeros((), dtype=torch.float64)
    for group in GROUPS:
        gains = oracle.advantages([r.reward for r in group.rollouts])
        for gain, r in zip(gains, group.rollouts, strict=True):
            ids = torch.tensor([[*group.prompt.tolist(), *r.tokens.tolist()]])
            logits = again(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
            logprobs = torch.log_softmax(logits, -1)[range(len(r.tokens)), r.tokens.tolist()]
            weight = (logprobs.detach() - torch.from_numpy(r.behaviour_logprobs.copy())).exp().clamp(max=2.0)
            total = total - (weight * gain * logprobs).sum()
    (total / TOKENS).backward()
    by_hand = flat([p.grad for p in again.parameters() if p.grad is not None])
    assert torch.allclose(update.gradient, by_hand, rtol=1e-9, atol=1e-13)


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


# -- invariance ------------------------------------------------------------------------------------------------------

CUTS = [(budget, layout) for budget in (1, 40, 130, 10**6) for layout in ("padded", "packed", "shared_prompt", "auto")]


def cut(budget: int, layout: str) -> LearnerRecipe:
    return recipe({"tokens_per_micro_batch": budget, "layout": layout})


def shuffled(seed: int) -> list[RolloutGroup]:
    """The same batch, groups in another order, the completions of each too."""
    order = random.Random(seed)
    groups = [
        RolloutGroup(g.ticket_id, g.kind, g.problem, g.prompt, tuple(order.sample(g.rollouts, len(g.rollouts))))
        for g in GROUPS
    ]
    return order.sample(groups, len(groups))


def assert_same(one: tuple[StepStats, list[Update]], other: tuple[StepStats, list[Update]], tolerance: float) -> None:
    assert one[0].loss == pytest.approx(other[0].loss, rel=tolerance, abs=tolerance)
    scale = other[1][0].gradient.abs().max()
    assert (one[1][0].gradient - other[1][0].gradient).abs().max() <= tolerance * scale
    assert one[0].entropy == pytest.approx(other[0].entropy, rel=tolerance)
    assert one[0].staleness_histogram == other[0].staleness_histogram


@pytest.fixture(scope="module")
def plain() -> dict[str, tuple[StepStats, list[Update]]]:
    """One completion a row, one row a micro-batch: nothing is padded, packed or added up."""
    return {"float64": trained(gpt2(), cut(1, "padded")), "float32": trained(llama(), cut(1, "padded"))}


@pytest.mark.parametrize("seed", [None, 1, 2], ids=["in order", "shuffled", "shuffled again"])
@pytest.mark.parametrize(("budget", "layout"), CUTS)
def test_no_cut_and_no_order_changes_loss_or_gradient(
    budget: int, layout: str, seed: int | None, plain: dict[str, tuple[StepStats, list[Update]]]
) -> None:
    groups = GROUPS if seed is None else shuffled(seed)
    assert_same(trained(gpt2(), cut(budget, layout), groups), plain["float64"], 1e-10)
    assert_same(trained(llama(), cut(budget, layout), groups), plain["float32"], 1e-4)


LAYOUTS: list[Literal["padded", "packed", "shared_prompt"]] = ["padded", "packed", "shared_prompt"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_is_never_looked_at(
    layout: Literal["padded", "packed", "shared_prompt"],
    plain: dict[str, tuple[StepStats, list[Update]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer.trainer, "pack", partial(pack, pad=9))
    stats, updates = trained(gpt2(), cut(130, layout))
    plainly = pack(GROUPS, Sheet.of(GROUPS).starts.tolist(), 130, layout)
    rows = sum(len(batch.input_ids) for batch in plainly)
    assert stats.padded_tokens == sum(batch.padded_tokens for batch in plainly) + 9 * rows
    assert_same((stats, updates), plain["float64"], 1e-10)
    assert_same(trained(llama(), cut(130, layout)), plain["float32"], 1e-4)
