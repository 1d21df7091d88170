"""pass@k and majority@k: against every draw of k there is."""

from __future__ import annotations

import itertools
from collections import Counter
from math import comb, sqrt

import pytest
from msgspec.structs import replace

from broker.schema import Rollout, RolloutGroup
from consumer.passes import figures, ks, majority, pass_at
from tests.consumer.groups import group, rollout


def answered(*answers: int, right: int = 0) -> list[Rollout]:
    """Rollouts with these answers, -1 none; `right` is the one that solves the problem."""
    return [replace(rollout((1,), correct=float(a == right)), answer=a) for a in answers]


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_draws_of_k_that_hold_a_solution(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)
        assert pass_at(samples, correct, k) == 1 - comb(samples - correct, k) / comb(samples, k)


def test_it_is_unbiased_where_one_minus_a_power_is_not() -> None:
    """Over all outcomes of 4 samples, right with probability 0.3: exactly 1 − 0.7², and the naive form is not."""
    p, n, k = 0.3, 4, 2
    chance = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at(n, c, k) for c, w in enumerate(chance)) == pytest.approx(1 - (1 - p) ** k, abs=1e-15)
    naive = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance))
    assert naive < 1 - (1 - p) ** k - 0.04


def test_pass_at_more_than_was_sampled_is_no_figure() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match="of 4 samples"):
            pass_at(4, 1, k)
    assert [ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((0, 0, 1, 2), 1.0),
        ((0, 1, 1, 2), 0.0),
        ((0, 0, 1, 1), 0.5),
        ((0, 1, 2, 3), 0.25),
        ((0, -1, -1, -1), 1.0),  # who declares nothing has no vote
        ((-1, -1), 0.0),
        ((), 0.0),
    ],
)
def test_the_majority_is_right_or_wrong_or_shares_a_tie(answers: tuple[int, ...], expected: float) -> None:
    found = answered(*answers)
    assert majority(found) == expected
    votes = Counter(a for a in answers if a >= 0)
    if votes:
        leading = [a for a in votes if votes[a] == max(votes.values())]
        assert majority(found) == leading.count(0) / len(leading)


def test_a_task_without_correct_is_solved_by_a_reward_of_one() -> None:
    assert [rollout((1,), r).solved for r in (0.0, 0.99, 1.0, 2.0)] == [False, False, True, True]
    assert not rollout((1,), 5.0, correct=0.5).solved, "partial credit is no solution, whatever it is paid"


def test_figures_weigh_each_problem_alike() -> None:
    groups = [
        replace(group("a"), rollouts=tuple(answered(0, 0, 0, 1))),
        replace(group("b"), rollouts=tuple(answered(1, 1, 1, 0))),
        replace(group("c"), rollouts=tuple(answered(1, 1, 1, 1))),
    ]
    found = figures(groups)
    assert (found["problems"], found["samples"]) == (3, 12)
    assert found["pass_at_1"] == pytest.approx(1 / 3)
    assert found["pass_at_1_error"] == pytest.approx(sqrt((5 / 12) ** 2 + (1 / 12) ** 2 + (1 / 3) ** 2) / sqrt(2 * 3))
    assert found["pass_at"] == pytest.approx({"1": 1 / 3, "2": (1 + 0.5 + 0) / 3, "4": 2 / 3})
    assert found["majority_at"] == pytest.approx({"4": 1 / 3})


def test_nothing_answered_is_no_figure() -> None:
    nothing: list[RolloutGroup] = []
    found = figures(nothing)
    assert (found["pass_at_1"], found["pass_at"], found["majority_at"], found["mean_length"]) == (None, {}, {}, None)
