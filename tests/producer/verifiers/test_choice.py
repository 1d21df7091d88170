"""Declared letters: one of them, in the forms people write."""

from __future__ import annotations

import pytest

from producer.tasks import Problem
from producer.verifiers.choice import score


@pytest.mark.parametrize(
    "said",
    ["B", "b", "(B)", "B.", "B)", r"\text{B}", r"\textbf{(B)}", "**B**", "Option B", "(B) 12 metres", "B. Twelve"],
)
def test_the_gold_letter_scores(said: str) -> None:
    verdict = score(f"So \\boxed{{{said}}}", Problem("?", "(B)"))
    assert (verdict.reward, verdict.answer) == (1.0, "B")


@pytest.mark.parametrize(
    "said", ["A", "", "A or B", "AB", "(A)(B)", "B, C", "(B) or (C)", "(A) B", "Bee", "K", "not B", "B. x C. y"]
)
def test_another_letter_or_two_do_not(said: str) -> None:
    assert score(f"So \\boxed{{{said}}}", Problem("?", "B")).reward == 0.0


def test_a_gold_that_is_no_letter_is_the_data_s_fault() -> None:
    with pytest.raises(ValueError, match="is no letter"):
        score("\\boxed{A}", Problem("?", "all of them"))
