"""What a step says of itself, each figure against a slow recomputation from the tokens, one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.figures import Figures, StepStats, effective_sample_size, quantiles, staleness_by_length, step_stats
from consumer.objective.settings import ObjectiveSettings
from consumer.sheet import Sheet
from tests.consumer import oracle
from tests.consumer.groups import gpt2, random_groups, recipe, rollout
from tests.consumer.oracle import Answer
from tests.consumer.ragged import LIMIT, VERSION, computed, ragged
from tests.consumer.watched import GROUPS, trained

BATCH = ragged(5)
CHOICES: list[dict[str, Any]] = [
    {},
    {"surrogate": "gspo", "clip_low": 0.05, "clip_high": 0.15},
    {"correction_bound": "mask", "correction": "sequence"},
    {"veto": 0.01, "m2po": 0.3},
]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def kish(weights: Sequence[float]) -> float:
    """Effective sample size as a fraction."""
    return math.fsum(weights) ** 2 / (len(weights) * math.fsum(w * w for w in weights))


def k3(log_ratio: float) -> float:
    return math.exp(log_ratio) - 1 - log_ratio


def between(values: Sequence[float], q: float) -> float:
    """The q-quantile, on the line between the two values beside it."""
    ordered = sorted(values)
    below, share = divmod(q * (len(ordered) - 1), 1)
    upper = ordered[min(int(below) + 1, len(ordered) - 1)]
    return ordered[int(below)] * (1 - share) + upper * share


def figures_of(answers: Sequence[Answer], flags: dict[str, Tensor], order: Tensor) -> Figures:
    """Gathered in two parts and in this order, as micro-batches would."""
    columns = {
        name: torch.tensor([x for a in answers for x in getattr(a, name)], dtype=torch.float64)
        for name in ("logprobs", "anchor", "entropy")
    } | flags
    figures = Figures(len(order))
    for rows in order.split(len(order) // 2 + 1):
        figures.put(rows, **{name: column[rows] for name, column in columns.items()})
    return figures


def stats_of(choice: dict[str, Any], **given: Any) -> tuple[StepStats, list[Answer], oracle.Outcome]:
    """Figures of the ragged batch, and the oracle's answers and outcome to it."""
    of = ObjectiveSettings.model_validate(choice)
    answers = BATCH.answers()
    expected = oracle.objective(answers, of, limit=LIMIT)
    found = computed(BATCH, of)
    flags = {name: getattr(found, name) for name in ("clipped", "truncated", "masked")}
    figures = figures_of(answers, flags, torch.randperm(len(found.loss), generator=torch.Generator().manual_seed(1)))
    usual = {"losses": [0.25, 0.75], "norms": [1.0, 3.0], "rate": 0.1, "padded": 99, **given}
    stats = step_stats(
        Sheet.of(BATCH.groups), figures, advantages=found.plan.advantages, staleness=found.plan.staleness, **usual
    )
    return stats, answers, expected


# -- against a slow recomputation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_fractions_are_of_all_tokens_and_of_those_of_either_sign(choice: dict[str, Any]) -> None:
    stats, answers, expected = stats_of(choice)
    gains = [gain for a in answers for gain in a.gains]
    for name, flags in (("clip", expected.clipped), ("truncation", expected.truncated), ("mask", expected.masked)):
        assert getattr(stats, f"{name}_fraction") == pytest.approx(mean(flags))
        for sign, chosen in (("positive", [g > 0 for g in gains]), ("negative", [g < 0 for g in gains])):
            fraction = mean([flag for flag, inside in zip(flags, chosen, strict=True) if inside])
            assert getattr(stats, f"{name}_fraction_{sign}") == pytest.approx(fraction), (name, sign)
    acting = {"clip": expected.clipped, "truncation": expected.truncated, "mask": expected.masked}
    assert sum(any(flags) for flags in acting.values()) >= 1


def test_effective_sample_sizes_are_of_ratios_at_the_start_of_the_batch_by_token_and_by_sequence() -> None:
    """Unbounded, whatever the weights were; a sequence's ratio is the product of its tokens', an empty one is none."""
    stats, answers, _ = stats_of({})
    logs = [[x - m for x, m in zip(a.anchor, a.behaviour, strict=True)] for a in answers]
    assert stats.ess == pytest.approx(kish([math.exp(x) for one in logs for x in one]))
    assert stats.sequence_ess == pytest.approx(kish([math.exp(math.fsum(one)) for one in logs if one]))
    assert 0 < stats.sequence_ess < stats.ess < 1
    assert any(not one for one in logs)


def test_ratios_and_kl_are_those_of_the_policy_as_it_was_when_its_gradient_was_taken() -> None:
    stats, answers, _ = stats_of({})
    logs = [x - m for a in answers for x, m in zip(a.logprobs, a.behaviour, strict=True)]
    ratios = [math.exp(x) for x in logs]
    assert stats.ratio_mean == pytest.approx(mean(ratios))
    assert stats.ratio_max == pytest.approx(max(ratios))
    for name, q in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
        assert getattr(stats, f"ratio_{name}") == pytest.approx(between(ratios, q)), name
    assert stats.kl == pytest.approx(mean([k3(x) for x in logs]))
    assert stats.kl_k1 == pytest.approx(-mean(logs))
    assert stats.entropy == pytest.approx(mean([h for a in answers for h in a.entropy]))


def test_what_the_engine_is_off_is_told_from_what_staleness_adds() -> None:
    """Tokens of the learner's own version differ by numerics alone; older ones by that and by their age."""
    stats, answers, _ = stats_of({})
    by_age: dict[int, list[float]] = {}
    for a in answers:
        for age, x, m in zip(a.ages, a.anchor, a.behaviour, strict=True):
            by_age.setdefault(age, []).append(k3(x - m))
    assert stats.mismatch_by_staleness == pytest.approx({age: mean(kls) for age, kls in by_age.items()})
    assert stats.mismatch_engine == pytest.approx(mean(by_age[0]))
    stale = [kl for age, kls in by_age.items() if age > 0 for kl in kls]
    assert stats.mismatch_staleness == pytest.approx(mean(stale) - mean(by_age[0]))
    assert stats.staleness_histogram == {age: len(kls) for age, kls in by_age.items()}
    assert stats.staleness_max == max(by_age)
    assert stats.staleness_mean == pytest.approx(mean([age for a in answers for age in a.ages]))
    assert len(by_age) > 2


def test_advantages_are_summed_up_token_by_token() -> None:
    stats, answers, _ = stats_of({})
    gains = [gain for a in answers for gain in a.gains]
    assert stats.advantage_mean == pytest.approx(mean(gains))
    assert stats.advantage_std == pytest.approx(math.sqrt(mean([(g - mean(gains)) ** 2 for g in gains])))


@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
def test_the_kl_to_the_reference_is_that_of_the_reference(layout: str) -> None:
    """Schulman's estimate of KL(π‖π_ref), log π_ref/π in it, at the tokens that were sampled."""
    stats, _ = trained(gpt2(), recipe({"layout": layout}, {"preset": "grpo"}))
    policy, reference = (oracle.logprobs_of(gpt2(seed), GROUPS) for seed in (0, 1))
    pairs = zip(policy, reference, strict=True)
    logs = [r - x for p, q in pairs for one, other in zip(p, q, strict=True) for x, r in zip(one, other, strict=True)]
    assert stats.kl_reference == pytest.approx(mean([k3(x) for x in logs]))
    assert trained(gpt2(), recipe())[0].kl_reference is None


# -- what cannot be known --------------------------------------------------------------------------------------------


def alone(*versions: int) -> Sequence[RolloutGroup]:
    """A group whose answers, of one token each, are of these versions."""
    answers = tuple(rollout((3,), 1.0 * (n == 0), spans=[(v, 0, 1)]) for n, v in enumerate(versions))
    return [RolloutGroup("t", "train", 0, np.array([1], np.int32), answers)]


def test_a_figure_that_a_batch_cannot_know_is_none_and_not_zero() -> None:
    degenerate, _ = trained(gpt2(), recipe(), [structs.replace(g, rollouts=g.rollouts[:1]) for g in random_groups(2)])
    for name in ("clip", "truncation", "mask"):
        assert getattr(degenerate, f"{name}_fraction_positive") is None
        assert getattr(degenerate, f"{name}_fraction_negative") is None
        assert getattr(degenerate, f"{name}_fraction") is not None
    fresh, _ = trained(gpt2(), recipe(), alone(4, 4))
    assert fresh.mismatch_engine is not None
    assert fresh.mismatch_staleness is None
    stale, _ = trained(gpt2(), recipe(), alone(2, 3))
    assert (stale.mismatch_engine, stale.mismatch_staleness) == (None, None)
    assert set(stale.mismatch_by_staleness) == {1, 2}


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_one_gradient_that_was_thrown_away_is_enough_for_a_step_to_say_so(norm: float) -> None:
    stats, _, _ = stats_of({}, norms=[1.0, norm, 2.0])
    assert stats.skipped
    assert math.isnan(stats.grad_norm)
    fine, _, _ = stats_of({})
    assert not fine.skipped
    assert (fine.grad_norm, fine.loss, fine.learning_rate) == (3.0, 0.5, 0.1)
    assert (fine.tokens, fine.padded_tokens) == (len(Sheet.of(BATCH.groups)), 99)


def test_staleness_goes_by_the_power_of_two_up_to_which_a_completion_is_long() -> None:
    group = RolloutGroup(
        "t0",
        "train",
        0,
        np.array([1], np.int32),
        (
            rollout([1], spans=[(9, 0, 1)]),
            rollout([1] * 3, spans=[(6, 0, 1), (9, 1, 3)]),  # its oldest token counts
            rollout([1] * 4, spans=[(8, 0, 4)]),
            rollout([1] * 5, spans=[(2, 0, 2), (5, 2, 5)]),
        ),
    )
    sheet = Sheet.of([group])
    assert staleness_by_length(sheet, 9 - sheet.versions) == {1: [0], 4: [3, 1], 8: [7]}
    stats, _, _ = stats_of({})
    answers = [r for g in BATCH.groups for r in g.rollouts if len(r.tokens)]  # an empty one has no token to be stale
    assert sum(stats.completions_by_length.values()) == len(answers)
    whole = sum(stats.completions_by_length[n] * stats.staleness_by_length[n] for n in stats.completions_by_length)
    assert whole == pytest.approx(sum(VERSION - min(r.versions()) for r in answers))


# -- parts -----------------------------------------------------------------------------------------------------------


def test_the_effective_sample_size_falls_with_the_spread_of_the_weights() -> None:
    assert effective_sample_size(torch.full((10,), 0.7)) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([1.0] + [0.0] * 9)) == pytest.approx(0.1)
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / (2 * 10))
    assert effective_sample_size(torch.empty(0)) == 1.0


def test_quantiles_of_very_many_tokens_are_of_evenly_spaced_ones() -> None:
    values = torch.arange(20_000_001, dtype=torch.float32) / 20_000_000
    assert quantiles(values, [0.5, 0.99]) == pytest.approx([0.5, 0.99], abs=1e-4)


def test_a_wild_ratio_makes_no_figure_infinite() -> None:
    far = replace(BATCH, anchor=[[[x + 300 for x in r] for r in g] for g in BATCH.anchor])
    sheet, size = Sheet.of(far.groups), len(Sheet.of(far.groups))
    figures = Figures(size)
    zeros = torch.zeros(size)
    figures.put(
        torch.arange(size), logprobs=far.column("logprobs") - 300, anchor=far.column("anchor"), entropy=zeros,
        clipped=zeros, truncated=zeros, masked=zeros,
    )  # fmt: skip
    stats = step_stats(
        sheet, figures, advantages=zeros, staleness=VERSION - sheet.versions, losses=[0.0], norms=[0.0], rate=0.1,
        padded=1,
    )  # fmt: skip
    assert all(math.isfinite(v) for v in vars(stats).values() if isinstance(v, float))
