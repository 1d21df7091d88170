"""The oracle itself: its derivatives, taken by hand, against differences of its own losses; and its simplest cases."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.objective.settings import ObjectiveSettings
from tests.consumer import oracle
from tests.consumer.oracle import Answer, Outcome
from tests.consumer.ragged import LIMIT, ragged

BATCH = ragged(7)
STEP = 1e-6
# Those whose weight on log π is held fast (cispo, topr) are no gradients of anything that could be differenced.
DIFFERENTIABLE: list[dict[str, Any]] = [
    {"surrogate": "pg"},
    {"surrogate": "ppo"},
    {"surrogate": "ppo", "dual_clip": 1.5},
    {"surrogate": "ppo", "ratio_bound": 1.4},
    {"surrogate": "gspo", "clip_low": 0.05, "clip_high": 0.15},
    {"surrogate": "gmpo"},
    {"surrogate": "sapo"},
    {"surrogate": "dppo", "dppo_penalty": 0.2},
    {"surrogate": "kimi"},
    {"surrogate": "kimi", "ratio_level": "sequence"},
    {"surrogate": "oapl", "proximal": "behaviour", "correction": "none"},
    {"surrogate": "pg", "kl": "k2", "kl_coefficient": 0.3},
    {"surrogate": "pg", "kl": "k3", "kl_coefficient": 0.3},
    {"surrogate": "pg", "kl": "k3_ratio", "kl_coefficient": 0.3},
    {"surrogate": "pg", "entropy_bonus": 0.2},
]


def outcome(answers: list[Answer], of: ObjectiveSettings) -> Outcome:
    return oracle.objective(answers, of, limit=LIMIT)


def moved(column: str, place: int, by: float) -> list[Answer]:
    """The batch with one of its log-probs, or entropies, a little elsewhere."""
    answers = BATCH.answers()
    for answer in answers:
        if place < answer.length:
            values = list(getattr(answer, column))
            values[place] += by
            setattr(answer, column, values)
            break
        place -= answer.length
    return answers


@pytest.mark.parametrize("choice", DIFFERENTIABLE, ids=lambda c: " ".join(str(v) for v in c.values()))
def test_what_was_derived_by_hand_is_the_slope_of_the_loss(choice: dict[str, Any]) -> None:
    of = ObjectiveSettings.model_validate(choice)
    found = outcome(BATCH.answers(), of)
    for column, derived in (("logprobs", found.gradient), ("entropy", found.by_entropy)):
        for place, slope in list(enumerate(derived))[::3]:
            up, down = (outcome(moved(column, place, sign * STEP), of).total for sign in (1, -1))
            assert slope == pytest.approx((up - down) / (2 * STEP), rel=1e-5, abs=1e-8)


def test_the_default_objective_of_two_tokens_by_mental_arithmetic() -> None:
    """Rewards 1 and 0: A = ±1. Weights 1 and 2 (truncated), ratio 1: −(1·1 − 2·1)/2."""
    won = Answer(0, 1.0, [-1.0], [-1.0], [-1.0], [0.0], [0.0], [0])
    lost = Answer(0, 0.0, [-1.0], [-1.0], [-9.0], [0.0], [0.0], [0])
    found = outcome([won, lost], ObjectiveSettings())
    assert found.total == pytest.approx(0.5)
    assert found.gradient == pytest.approx([-0.5, 1.0])
    assert found.truncated == [False, True]
