"""Conformance: what is the gold answer written in another way, and what is not."""

from __future__ import annotations

import pytest

from producer.tasks import Problem
from producer.verifiers.symbolic import score
from tests.producer.verifiers.cases import CHAPTERS

RIGHT = [
    (name, gold, answer) for name, cases in CHAPTERS.items() for gold, right, _ in cases for answer in (gold, *right)
]
WRONG = [(name, gold, answer) for name, cases in CHAPTERS.items() for gold, _, wrong in cases for answer in wrong]


def verdict(gold: str, answer: str) -> float:
    return score(f"So it is \\boxed{{{answer}}}.", Problem("?", gold)).reward


@pytest.mark.parametrize(("chapter", "gold", "answer"), RIGHT)
def test_the_same_answer_counts(chapter: str, gold: str, answer: str) -> None:
    assert verdict(gold, answer) == 1.0, chapter


@pytest.mark.parametrize(("chapter", "gold", "answer"), WRONG)
def test_another_answer_does_not(chapter: str, gold: str, answer: str) -> None:
    assert verdict(gold, answer) == 0.0, chapter


def test_the_table_is_as_large_as_it_is_said_to_be() -> None:
    assert len(RIGHT) + len(WRONG) >= 300
    assert len(WRONG) >= 100
