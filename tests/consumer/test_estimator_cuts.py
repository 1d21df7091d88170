"""I7: what the trainer makes of a batch is the same however the batch is cut, padded, laid out or ordered."""

from __future__ import annotations

import random
from functools import cache, partial
from typing import Any, Literal, get_args

import pytest

import consumer.trainer
from broker.schema import RolloutGroup
from consumer.blocks import parcels_of
from consumer.pack import pack
from consumer.settings import LearnerRecipe, LearnerSettings
from consumer.sheet import Sheet
from tests.consumer.groups import gpt2, llama, recipe
from tests.consumer.watched import GROUPS, OBJECTIVES, Step, trained

LAYOUTS: tuple[str, ...] = get_args(LearnerSettings.model_fields["layout"].annotation)
CUTS = [(budget, layout) for budget in (1, 40, 130, 10**6) for layout in LAYOUTS]


def cut(budget: int, layout: str, objective: dict[str, Any] | None = None) -> LearnerRecipe:
    return recipe({"tokens_per_micro_batch": budget, "layout": layout}, objective)


def shuffled(seed: int) -> list[RolloutGroup]:
    """The same batch, groups in another order, the completions of each too."""
    order = random.Random(seed)
    groups = [
        RolloutGroup(g.ticket_id, g.kind, g.problem, g.prompt, tuple(order.sample(g.rollouts, len(g.rollouts))))
        for g in GROUPS
    ]
    return order.sample(groups, len(groups))


def assert_same(one: Step, other: Step, tolerance: float) -> None:
    """Loss and gradient to this much of the largest."""
    assert one[0].loss == pytest.approx(other[0].loss, rel=tolerance, abs=tolerance)
    scale = float(other[1][0].gradient.abs().max())
    assert float((one[1][0].gradient - other[1][0].gradient).abs().max()) <= tolerance * scale
    assert one[0].entropy == pytest.approx(other[0].entropy, rel=tolerance)
    assert one[0].staleness_histogram == other[0].staleness_histogram


@cache
def plain(name: str) -> Step:
    """One completion a row, one row a micro-batch: nothing is padded, packed or added up."""
    return trained(gpt2(), cut(1, "padded", OBJECTIVES[name]))


@cache
def plain_float32() -> Step:
    return trained(llama(), cut(1, "padded"))


@pytest.mark.parametrize("seed", [None, 1, 2], ids=["in order", "shuffled", "shuffled again"])
@pytest.mark.parametrize(("budget", "layout"), CUTS)
def test_no_cut_and_no_order_changes_loss_or_gradient(budget: int, layout: str, seed: int | None) -> None:
    groups = GROUPS if seed is None else shuffled(seed)
    assert_same(trained(gpt2(), cut(budget, layout), groups), plain("headrace"), 1e-12)
    assert_same(trained(llama(), cut(budget, layout), groups), plain_float32(), 1e-4)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "headrace"])
def test_nor_those_of_an_objective_that_looks_at_more_than_a_token(name: str) -> None:
    for seed, (budget, layout) in enumerate(zip((40, 130, 10**6), LAYOUTS, strict=False)):
        assert_same(trained(gpt2(), cut(budget, layout, OBJECTIVES[name]), shuffled(seed)), plain(name), 1e-12)


@pytest.mark.parametrize("name", ["headrace", "normalised", "m2po, counted after", "k1 in the reward", "gspo"])
def test_two_minibatches_are_the_same_two_however_they_are_cut(name: str) -> None:
    """Both updates, the second away from the anchor."""
    twice, steps = {"minibatches_per_batch": 2, "learning_rate": 1e-3}, list[Step]()
    for budget, layout in ((1, "padded"), (130, "shared_prompt")):
        learner = {"tokens_per_micro_batch": budget, "layout": layout, **twice}
        steps.append(trained(gpt2(), recipe(learner, OBJECTIVES[name])))
    for one, other in zip(steps[0][1], steps[1][1], strict=True):
        assert float((one.gradient - other.gradient).abs().max()) <= 1e-8 * float(one.gradient.abs().max())
    assert steps[0][0].loss == pytest.approx(steps[1][0].loss, rel=1e-8)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "auto"])
def test_padding_is_never_looked_at(
    layout: Literal["padded", "shared_prompt"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer.trainer, "parcels_of", partial(parcels_of, pad=9))
    step = trained(gpt2(), cut(130, layout))
    unpadded = pack(GROUPS, Sheet.of(GROUPS).starts.tolist(), 130, layout)
    rows = sum(len(batch.input_ids) for batch in unpadded)
    assert step[0].padded_tokens == sum(batch.padded_tokens for batch in unpadded) + 9 * rows
    assert_same(step, plain("headrace"), 1e-12)
    assert_same(trained(llama(), cut(130, layout)), plain_float32(), 1e-4)
