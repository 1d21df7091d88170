"""Bins: every item once, none overfull, few, and even."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.bins import fill, spread

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=60)
often = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@often
@given(SIZES, st.integers(1, 100))
def test_every_item_is_in_one_bin_and_no_bin_is_overfull(sizes: list[int], capacity: int) -> None:
    bins = fill(sizes, capacity)
    assert sorted(i for items in bins for i in items) == list(range(len(sizes)))
    assert all(len(items) == 1 or sum(sizes[i] for i in items) <= capacity for items in bins)
    assert bins == fill(sizes, capacity)


@often
@given(SIZES, st.integers(60, 200))
def test_bins_are_few(sizes: list[int], capacity: int) -> None:
    """First-fit leaves no two bins half empty."""
    bins, least = len(fill(sizes, capacity)), -(-sum(sizes) // capacity)
    assert least <= bins <= 2 * least


@pytest.mark.parametrize(
    ("sizes", "capacity", "bins"),
    [
        ([9, 8, 7, 6], 20, [[0, 3], [1, 2]]),  # even, where first-fit would leave 20 and 10
        ([5, 4, 4, 3, 2, 2], 10, [[0, 3, 4], [1, 2, 5]]),  # two, where first-fit needs three
        ([5, 5, 4, 3, 3], 10, [[0, 1], [2, 3, 4]]),  # two, where filling the emptiest would come to 11 and 9
        ([30, 5, 5], 10, [[0], [1, 2]]),
    ],
)
def test_bins_are_even_where_there_is_a_choice_and_full_where_there_is_none(
    sizes: list[int], capacity: int, bins: list[list[int]]
) -> None:
    assert fill(sizes, capacity) == bins


@often
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.integers(1, 9))
def test_spreading_is_within_the_costliest_item_of_even_and_keeps_to_the_most_items(
    costs: list[float], bins: int
) -> None:
    content = spread(costs, bins)
    loads = [sum(costs[i] for i in items) for items in content]
    assert max(loads) - min(loads) <= max(costs) + 1e-9
    most = -(-len(costs) // bins)
    assert max(len(items) for items in spread(costs, bins, most)) <= most
