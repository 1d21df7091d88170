"""Prompts that do not fit: refused with their number, or left out and counted, never in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from broker.errors import Refused
from producer.prompts import fitting
from producer.tasks import FixedTask, Part, Problem, Scoring
from producer.tasks.settings import AdditionSettings
from producer.tokens import Tokens

TASK = FixedTask(
    "mine",
    (Problem("What is 1 + 1?", "2"), Problem("Count: " + "one two three " * 20, "60"), Problem("What is 2 + 2?", "4")),
    (Problem("What is 3 + 3?", "6"), Problem("Count: " + "four five six " * 30, "90")),
    (Part("mine", Scoring("producer.tasks.addition:score")),),
)


@pytest.fixture
def tokens(tiny_model: Path) -> Tokens:
    return Tokens(tiny_model, AdditionSettings(name="addition"))


def test_a_task_that_fits_stays_as_it_is(tokens: Tokens) -> None:
    longest = max(len(tokens.prompt_ids(p)) for p in (*TASK.train, *TASK.held_out))
    assert fitting(TASK, tokens, longest, drop=False) is TASK
    with pytest.raises(Refused):
        fitting(TASK, tokens, longest - 1, drop=False)


def test_longer_ones_are_refused_with_their_number_and_what_to_do(tokens: Tokens) -> None:
    longest = max(len(tokens.prompt_ids(p)) for p in (*TASK.train, *TASK.held_out))
    with pytest.raises(
        Refused, match=rf"^2 of 5 problems have .* = 60 \(the longest has {longest}\).*drop_long_prompts"
    ):
        fitting(TASK, tokens, 60, drop=False)


def test_or_left_out_of_both_splits_and_counted(tokens: Tokens) -> None:
    with structlog.testing.capture_logs() as lines:
        kept = fitting(TASK, tokens, 60, drop=True)
    assert kept.train == (TASK.train[0], TASK.train[2])
    assert kept.held_out == TASK.held_out[:1]
    assert [(line["event"], line["problems"], line["of"]) for line in lines] == [("problems are left out", 2, 5)]
    assert kept.card().content_hash != TASK.card().content_hash, "it is another task, and generators must agree on it"


def test_nothing_left_to_train_on_is_no_task(tokens: Tokens) -> None:
    with pytest.raises(Refused, match="all problems to train on"):
        fitting(replace(TASK, train=TASK.train[1:2]), tokens, 60, drop=True)
