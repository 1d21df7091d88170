"""Reward as the weighted sum of what travels beside it, and numbers for answers."""

from __future__ import annotations

import numpy as np
import pytest

from broker.schema import VersionSpan, solves
from producer.engine import Completion
from producer.reward import rewarded
from producer.rollout import answers
from producer.tasks import Verdict


def completion(length: int = 4, truncated: bool = False) -> Completion:
    tokens = np.arange(length, dtype=np.int32)
    return Completion(tokens, np.zeros(length, np.float32), (VersionSpan(0, 0, length),), truncated)


def test_without_weights_the_verifier_s_word_stands() -> None:
    verdict = Verdict(0.7, {"score": 0.7})
    assert rewarded(verdict, {}, "text", completion(), 8) is verdict


def test_a_reward_is_the_weighted_sum_of_components_that_travel_with_it() -> None:
    weights = {"correct": 1.0, "formatted": 0.1, "length": -0.5, "truncated": -1.0}
    found = rewarded(Verdict(1.0, {"correct": 1.0, "formatted": 1.0}), weights, "", completion(2, truncated=True), 8)
    assert found.components == {"correct": 1.0, "formatted": 1.0, "length": 0.25, "truncated": 1.0}
    assert found.reward == pytest.approx(1.0 + 0.1 - 0.5 * 0.25 - 1.0)
    assert found.reward == pytest.approx(sum(weights[name] * value for name, value in found.components.items()))


def test_one_that_failed_is_paid_for_nothing_but_its_style() -> None:
    found = rewarded(Verdict(0.0, {"failed": 1.0}, "hung"), {"correct": 1.0, "length": -0.5}, "", completion(8), 8)
    assert (found.reward, found.failed) == (-0.5, "hung")


@pytest.mark.parametrize(
    ("text", "latin", "han"),
    [("abc", 1.0, 0.0), ("ab\u4e2d\u6587", 0.5, 0.5), ("12 + 3", 1.0, 1.0), ("\u0414a", 0.5, 0.0)],
)
def test_a_script_is_the_share_of_the_letters(text: str, latin: float, han: float) -> None:
    found = rewarded(Verdict(0.0), {"latin": 1.0, "han": 1.0}, text, completion(), 8)
    assert found.components == {"latin": latin, "han": han}


def test_answers_are_numbered_and_all_that_solve_are_one() -> None:
    right = {"correct": 1.0}
    group = [
        Verdict(0.0, {"correct": 0.0}, answer="7"),
        Verdict(1.0, right, answer="1/2"),
        Verdict(0.0, {"correct": 0.0}, answer=""),
        Verdict(1.0, right, answer="0.5"),
        Verdict(0.0, {"correct": 0.0}, answer="7"),
        Verdict(1.0, right),
    ]
    assert answers(group) == [0, 1, -1, 1, 0, 1]
    assert solves(1.0, {})
    assert not solves(5.0, {"correct": 0.5})
