"""Declared text: the gold words and no others."""

from __future__ import annotations

import pytest

from producer.tasks import Problem
from producer.verifiers.exact import score


@pytest.mark.parametrize("said", ["New York", "new york", " New\n York ", "New York.", '"New York"', "**New York**"])
def test_the_same_words_score(said: str) -> None:
    assert score(f"<answer>{said}</answer>", Problem("?", "New York")).reward == 1.0


@pytest.mark.parametrize("said", ["York", "NewYork", "New York or Boston", "New York City", "", "New-York"])
def test_other_words_do_not(said: str) -> None:
    assert score(f"<answer>{said}</answer>", Problem("?", "New York")).reward == 0.0


def test_capitals_matter_where_the_task_says_so() -> None:
    assert score("<answer>h2o</answer>", Problem("?", "H2O")).reward == 1.0
    assert score("<answer>h2o</answer>", Problem("?", "H2O"), case=True).reward == 0.0
