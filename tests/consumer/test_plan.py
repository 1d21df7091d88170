"""What is fixed before the first gradient: the loss is a sum that no cut, order or numbering of a batch can change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.objective.correction import second_moment_mask
from consumer.objective.presets import PRESETS
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens
from consumer.plan import Plan, plan
from consumer.sheet import Sheet
from tests.consumer.groups import rollout
from tests.consumer.ragged import LIMIT, VERSION, Computed, Ragged, computed, ragged

BATCH = ragged(3)
# What looks at more than a token: whole batches, groups, sequences.
FAR_SIGHTED: dict[str, dict[str, Any]] = {
    "normalised by token": {"normalise_weights": True},
    "normalised by prefix": {"normalise_weights": True, "correction": "prefix"},
    "normalised by sequence": {"normalise_weights": True, "correction": "sequence", "truncation": 5.0},
    "normalised mean": {"normalise_weights": True, "correction": "geometric", "correction_bound": "mask"},
    "counted after a mask": {"denominator": "after", "correction_bound": "mask"},
    "counted after a veto": {"denominator": "after", "veto": 0.01, "aggregation": "sequence_mean"},
    "counted after m2po": {"denominator": "after", "m2po": 0.2, "aggregation": "prompt_mean"},
    "m2po by prefix": {"m2po": 0.2, "correction": "prefix"},
    "off-policy mask": {"off_policy_mask": 0.1, "aggregation": "constant"},
    "k1 in the reward": {"kl": "k1_reward", "kl_coefficient": 0.3, "baseline": "mean", "scale": "batch_std"},
    "k1 to go": {"kl": "k1_reward_to_go", "kl_coefficient": 0.3, "baseline": "none", "scale": "batch_whiten"},
    "components": {"baseline": "mean", "scale": "gdpo"},
    "overlong, filtered": {"overlong": "filter", "denominator": "after", "aggregation": "sequence_mean"},
    "overlong, soft": {"overlong": "soft", "overlong_buffer": 4, "entropy_bonus": 0.1},
    "loglinear": {"proximal": "loglinear", "correction": "sequence"},
}
CHOICES = {name: {"preset": name} for name in PRESETS} | FAR_SIGHTED


def settings(name: str) -> ObjectiveSettings:
    return ObjectiveSettings.model_validate(CHOICES[name])


def same(one: Computed, other: Computed, places: list[int] | None = None) -> None:
    """Loss, gradient and flags of each token, to 1e-12 of the largest; `places` say where `one` has other's tokens."""
    at = torch.arange(len(other.loss)) if places is None else torch.tensor(places)
    for name in ("loss", "gradient", "by_entropy"):
        wanted: Tensor = getattr(other, name)[at]
        assert float((getattr(one, name) - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max()), name
    assert float(one.loss.sum()) == pytest.approx(float(other.loss.sum()), rel=1e-12, abs=1e-14)
    for name in ("clipped", "truncated", "masked"):
        assert torch.equal(getattr(one, name), getattr(other, name)[at]), name


# -- invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minibatches", [1, 2, 3])
@pytest.mark.parametrize("name", CHOICES)
def test_no_split_into_micro_batches_changes_loss_or_gradient(name: str, minibatches: int) -> None:
    whole = computed(BATCH, settings(name), minibatches)
    for seed in range(4):
        same(computed(BATCH, settings(name), minibatches, split=seed), whole)


@pytest.mark.parametrize("name", CHOICES)
def test_neither_groups_nor_rollouts_need_to_stand_in_any_order(name: str) -> None:
    whole = computed(BATCH, settings(name))
    for seed in range(4):
        batch, places = BATCH.shuffled(seed)
        same(computed(batch, settings(name), split=seed), whole, places)


@pytest.mark.parametrize("name", sorted(set(CHOICES) - {"loglinear"}))
def test_the_number_of_a_minibatch_does_not_matter_only_who_is_in_it(name: str) -> None:
    """All but loglinear's, which is told how many updates have gone before."""
    swapped = Ragged(*([column[g ^ 1] for g in range(6)] for column in vars(BATCH).values()))
    starts = np.cumsum([0, *(g.completion_tokens for g in BATCH.groups)])
    places = [n for g in range(6) for n in range(starts[g ^ 1], starts[(g ^ 1) + 1])]
    same(computed(swapped, settings(name), 2), computed(BATCH, settings(name), 2), places)


def test_equal_ratios_are_masked_together_so_that_m2po_does_not_depend_on_order_either() -> None:
    """Answers to one prompt that begin alike have the same first ratio, and advantages of their own."""
    off, gains = torch.tensor([1.0, 1.0, 1.0, 0.1]).double(), torch.tensor([1.0, 0.5, 2.0, 1.0]).double()
    found = [second_moment_mask(tokens(off[i], gains[i]), 0.67) for i in (torch.arange(4), torch.tensor([2, 0, 3, 1]))]
    assert found[0].tolist() == [True, True, True, False]
    assert found[1].tolist() == [True, True, False, True]


# -- what the plan says ----------------------------------------------------------------------------------------------


def planned(minibatches: int = 1, batch: Ragged = BATCH, **choice: Any) -> Plan:
    of = ObjectiveSettings.model_validate(choice)
    return plan(
        Sheet.of(batch.groups), of, version=VERSION, limit=LIMIT, minibatches=minibatches, anchor=batch.column("anchor")
    )


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "prompt_mean"])
@pytest.mark.parametrize("minibatches", [1, 2, 3])
def test_the_coefficients_of_a_minibatch_are_those_of_a_mean(aggregation: str, minibatches: int) -> None:
    found = planned(minibatches, aggregation=aggregation)
    for number in range(minibatches):
        assert float(found.coefficients[found.part == number].sum()) == pytest.approx(1.0, rel=1e-14)


def test_constant_aggregation_divides_by_the_limit_whatever_was_sampled() -> None:
    sequences = sum(len(r.tokens) > 0 for g in BATCH.groups for r in g.rollouts)
    assert planned(aggregation="constant").coefficients.unique().tolist() == pytest.approx([1 / (sequences * LIMIT)])
    shorter = planned(aggregation="constant", constant_length=5)
    assert shorter.coefficients.unique().tolist() == pytest.approx([1 / (sequences * 5)])


def test_a_filtered_answer_weighs_nothing_and_still_counts_unless_asked_otherwise() -> None:
    """Overlong filtering: zero weight, denominator kept."""
    before, after = planned(overlong="filter"), planned(overlong="filter", denominator="after")
    left = int(before.mask.sum())
    assert 0 < left < len(before.mask)
    assert torch.equal(before.coefficients, planned().coefficients)
    assert after.coefficients[after.mask].tolist() == pytest.approx([1 / left] * left)


def test_staleness_is_in_versions_of_each_token_and_groups_are_dealt_to_minibatches_in_turn() -> None:
    found, sheet = planned(4), Sheet.of(BATCH.groups)
    versions = [v for g in BATCH.groups for r in g.rollouts for v in r.versions()]
    assert found.staleness.tolist() == [VERSION - v for v in versions]
    assert found.part.tolist() == [g % 4 for g in sheet.groups.tolist()]


def test_a_batch_of_one_token_and_one_of_none_have_a_plan() -> None:
    prompt = np.array([1], np.int32)
    for answers in ((rollout((3,), 1.0),), (rollout((), 1.0),)):
        sheet = Sheet.of([RolloutGroup("t", "train", 0, prompt, answers)])
        for name in CHOICES:
            start = torch.full((len(sheet),), -1.0).double()
            found = plan(sheet, settings(name), version=0, limit=LIMIT, anchor=start, reference=start)
            assert torch.isfinite(found.coefficients).all()
            assert torch.isfinite(found.advantages).all()
            assert all(divisor > 0 for divisor in found.divisors)


# -- M2PO ------------------------------------------------------------------------------------------------------------


def tokens(off: Tensor, gains: Tensor) -> Tokens:
    """One sequence with these log π/μ."""
    zeros, index = torch.zeros_like(off), torch.zeros(len(off), dtype=torch.int64)
    everywhere = torch.ones_like(index, dtype=torch.bool)
    return Tokens(off, off, zeros, gains, index, index, everywhere, ~everywhere)


def test_m2po_drops_as_few_harmful_tokens_as_will_do_and_none_within_its_least_bounds() -> None:
    rng = np.random.default_rng(5)
    off, gains = torch.from_numpy(rng.normal(0, 0.5, 200)), torch.from_numpy(rng.normal(0, 1, 200))
    dropped = second_moment_mask(tokens(off, gains), 0.1)
    harmful = gains * off > 0
    ratio = off.exp()
    assert not (dropped & ~harmful).any()
    assert not (dropped & (ratio >= 0.7) & (ratio <= 1.5)).any()
    rest = off[harmful & ~dropped] ** 2
    assert float(rest.mean()) <= 0.1
    least = float((off[dropped] ** 2).min())
    assert (float(rest.sum()) + least) / (len(rest) + 1) > 0.1, "with the mildest of the dropped it would be too much"
    assert least >= float(rest.max())


def test_m2po_leaves_a_calm_batch_alone() -> None:
    off = torch.full((10,), 0.1).double()
    assert not second_moment_mask(tokens(off, torch.ones(10).double()), 0.04).any()
    assert not second_moment_mask(tokens(off[:0], off[:0]), 0.04).any()
