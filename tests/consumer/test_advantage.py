"""Advantages against the definition, one completion at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.objective.advantage import advantages, centred, overlong_penalty, whitened
from consumer.objective.settings import ObjectiveSettings
from tests.consumer import oracle, oracle_advantage

quietly = settings(deadline=None, database=None, derandomize=True)
rewards = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12)
batches = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, -0.5]), min_size=1, max_size=6), min_size=1, max_size=5
)
SCALES: list[dict[str, Any]] = [
    {"baseline": "leave_one_out"},
    {"baseline": "mean"},
    {"baseline": "none"},
    {"baseline": "mean", "scale": "group_std"},
    {"baseline": "leave_one_out", "scale": "group_std", "std_ddof": 0, "std_eps": 1e-4},
    {"baseline": "mean", "scale": "batch_std", "std_eps": 0.0},
    {"baseline": "leave_one_out", "scale": "batch_std", "std_ddof": 0},
    {"baseline": "mean", "scale": "group_mean"},
]


def flat(batch: list[list[float]], of: ObjectiveSettings) -> list[float]:
    values = np.array([r for group in batch for r in group])
    found: list[float] = advantages(values, [len(group) for group in batch], of).tolist()
    return found


# -- baselines -------------------------------------------------------------------------------------------------------


@quietly
@given(rewards)
def test_it_is_the_reward_less_the_mean_of_the_others(values: list[float]) -> None:
    assert centred(values, "leave_one_out") == pytest.approx(oracle.advantages(values), abs=1e-12)
    size = len(values)
    assert centred(values, "mean") * size / (size - 1) == pytest.approx(oracle.advantages(values), abs=1e-12)
    assert centred(values, "none").tolist() == values


@quietly
@given(rewards, st.floats(-5, 5))
def test_neither_a_constant_nor_the_order_matters(values: list[float], shift: float) -> None:
    array = np.array(values)
    order = np.argsort(np.sin(7 * array))  # some permutation
    found = centred(array, "leave_one_out")
    assert centred(array + shift, "leave_one_out") == pytest.approx(found, abs=1e-12)
    assert centred(array[order], "leave_one_out") == pytest.approx(found[order], abs=1e-12)
    assert found.sum() == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -7.3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_a_group_of_one_and_a_group_of_equals_have_exactly_none(reward: float, size: int, baseline: Any) -> None:
    """0.1 summed seven times is not 0.7: rounding must not make a gradient out of nothing."""
    assert centred([reward] * size, baseline).tolist() == [0.0] * size


def test_one_right_answer_among_four() -> None:
    assert centred([1.0, 0.0, 0.0, 0.0], "leave_one_out") == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert centred([1.0, 0.0, 0.0, 0.0], "mean") == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_it_is_computed_in_double_precision_from_the_float32_that_travelled() -> None:
    values = np.array([0.1, 0.7, 0.3], np.float32)
    found = centred(values, "leave_one_out")
    assert found.dtype == np.float64
    assert found == pytest.approx(oracle.advantages([float(v) for v in values]), abs=1e-15)


# -- scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", SCALES, ids=str)
@quietly
@given(batch=batches)
def test_a_batch_of_groups_is_what_the_definitions_make_of_it(choice: dict[str, Any], batch: list[list[float]]) -> None:
    of = ObjectiveSettings.model_validate(choice)
    members = [g for g, group in enumerate(batch) for _ in group]
    expected = oracle_advantage.of_batch([r for group in batch for r in group], members, [{}] * len(members), of)
    assert flat(batch, of) == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("choice", [c for c in SCALES if c["baseline"] != "none"], ids=str)
def test_whatever_the_scale_one_and_equals_stay_at_exactly_nothing(choice: dict[str, Any]) -> None:
    of = ObjectiveSettings.model_validate(choice)
    found = flat([[0.1] * 7, [1.0], [1.0, 0.0, 0.3]], of)
    assert found[:8] == [0.0] * 8
    assert all(a != 0 for a in found[8:])


def test_equal_components_stay_at_exactly_nothing_beside_groups_that_differ() -> None:
    """GDPO: each component is z-scored in its group, so that neither drowns; 0.1 thrice has no deviation."""
    of = ObjectiveSettings(baseline="mean", scale="gdpo")
    right, brief = [0.1, 0.1, 0.1, 0.0, 1.0, 0.0, 0.7], [3.0, 3.0, 3.0, 100.0, 300.0, 300.0, 0.1]
    components = [{"right": r, "brief": b} for r, b in zip(right, brief, strict=True)]
    found = advantages(np.zeros(7), [3, 4], of, components)
    assert found[:3].tolist() == [0.0] * 3
    assert found == pytest.approx(oracle_advantage.of_batch([0.0] * 7, [0] * 3 + [1] * 4, components, of), rel=1e-12)
    only = ObjectiveSettings(baseline="mean", scale="gdpo", gdpo_weights={"right": 2.0})
    group = [0.0, 1.0, 0.0, 0.7]
    scored = np.array(group) - np.mean(group)
    found = advantages(np.zeros(7), [3, 4], only, components)
    assert found[3:] / found[4] == pytest.approx(scored / scored[1]), "the other component does not count"


def test_z_scores_of_a_single_right_answer_depend_on_the_group_and_maxrls_on_its_rarity() -> None:
    z = ObjectiveSettings(baseline="mean", scale="group_std", std_eps=0.0)
    assert flat([[1.0, 0.0, 0.0, 0.0]], z) == pytest.approx([1.5, -0.5, -0.5, -0.5])
    biased = ObjectiveSettings(baseline="mean", scale="group_std", std_ddof=0, std_eps=0.0)
    assert flat([[1.0, 0.0, 0.0, 0.0]], biased) == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    maxrl = ObjectiveSettings(baseline="mean", scale="group_mean")
    assert flat([[1.0, 0.0, 0.0, 0.0]], maxrl) == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert flat([[0.0, 0.0]], maxrl) == [0.0, 0.0]
    assert flat([[-1.0, 0.0]], maxrl) == [0.0, 0.0], "a mean below 0 is no measure of success"


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_whitened_returns_have_mean_0_and_deviation_1_over_the_tokens_that_count(eps: float) -> None:
    of = ObjectiveSettings(baseline="none", scale="batch_whiten", std_eps=eps)
    returns, counted = np.random.default_rng(0).normal(3, 2, 50), np.arange(50) % 4 != 0
    found = whitened(returns, counted, of)
    assert found[counted].mean() == pytest.approx(0.0, abs=1e-12)
    assert found[counted].std(ddof=1) == pytest.approx(1.0, rel=1e-5)
    assert found[counted].tolist() == pytest.approx(oracle_advantage.whitened(returns[counted].tolist(), of), rel=1e-12)


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_equal_returns_are_whitened_to_exactly_nothing(count: int) -> None:
    """The standard deviation of seven times 0.1 comes out as 1e-17, by which nothing may be divided."""
    of = ObjectiveSettings(baseline="none", scale="batch_whiten", std_eps=0.0)
    assert whitened(np.full(count, 0.1), np.ones(count, np.bool_), of).tolist() == [0.0] * count


# -- overlong --------------------------------------------------------------------------------------------------------


def test_the_overlong_penalty_begins_a_buffer_before_the_limit_and_ends_at_minus_one() -> None:
    found = overlong_penalty([0, 12, 13, 14, 16, 20], limit=16, buffer=4)
    assert found.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert found.tolist() == [oracle_advantage.overlong(length, 16, 4) for length in (0, 12, 13, 14, 16, 20)]
