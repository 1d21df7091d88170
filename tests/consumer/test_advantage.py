"""Advantages against the definition, one completion at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.objective.advantage import leave_one_out
from tests.consumer import oracle

quietly = settings(deadline=None, database=None, derandomize=True)
rewards = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12)


@quietly
@given(rewards)
def test_it_is_the_reward_less_the_mean_of_the_others(values: list[float]) -> None:
    assert leave_one_out(values) == pytest.approx(oracle.advantages(values), abs=1e-12)


@quietly
@given(rewards, st.floats(-5, 5))
def test_neither_a_constant_nor_the_order_matters(values: list[float], shift: float) -> None:
    array = np.array(values)
    order = np.argsort(np.sin(7 * array))  # some permutation
    assert leave_one_out(array + shift) == pytest.approx(leave_one_out(array), abs=1e-12)
    assert leave_one_out(array[order]) == pytest.approx(leave_one_out(array)[order], abs=1e-12)
    assert leave_one_out(array).sum() == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -7.3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_a_group_of_one_and_a_group_of_equals_have_exactly_none(reward: float, size: int) -> None:
    """0.1 summed seven times is not 0.7: rounding must not make a gradient out of nothing."""
    assert leave_one_out([reward] * size).tolist() == [0.0] * size


def test_one_right_answer_among_four() -> None:
    assert leave_one_out([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


def test_it_is_computed_in_double_precision_from_the_float32_that_travelled() -> None:
    values = np.array([0.1, 0.7, 0.3], np.float32)
    assert leave_one_out(values).dtype == np.float64
    assert leave_one_out(values) == pytest.approx(oracle.advantages([float(v) for v in values]), abs=1e-15)
