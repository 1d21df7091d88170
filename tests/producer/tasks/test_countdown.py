"""Countdown: every problem has a solution, and every solution counts, however it is written."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import pytest

from broker.errors import Refused
from producer.tasks import Problem
from producer.tasks.countdown import score
from tests.producer.tasks.made import complaint, made

SUM = Problem("Reach 18.", json.dumps({"numbers": [3, 5, 7], "target": 26}))


def correct(answer: str, problem: Problem = SUM) -> bool:
    return score(f"I try.\n<answer>{answer}</answer>", problem).reward == 1.0


@pytest.mark.parametrize(
    "answer",
    ["3*7+5", "(3 × 7) + 5", "5 + 7*3 = 26", " 5+3 \\times 7 ", "5 - -3*7", "$7*3+5$", "[7*3]+5", "5+7·3"],
)
def test_what_reaches_the_target_counts_however_it_is_written(answer: str) -> None:
    assert correct(answer)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("26", "the target itself"),
        ("3+5+7", "another value"),
        ("5*5+1", "numbers that were not given"),
        ("3*7+5+5-5", "a number used twice"),
        ("7*3+5*1", "a number of its own"),
        ("7*3+5 = 27", "a claim that is false"),
        ("7*3+5 = x", "no claim"),
        ("3*7+", "no expression"),
        ("7**3", "a power"),
        ("7//3", "another division"),
        ("int('26')", "a program"),
        ("(" * 300 + "26" + ")" * 300, "too long"),
        ("", "nothing"),
        ("5/(3-3)*7", "a division by nothing"),
    ],
)
def test_everything_else_does_not(answer: str, why: str) -> None:
    assert not correct(answer), why


def test_two_answers_that_differ_are_none_and_one_said_twice_is_one() -> None:
    assert score("<answer>3*7+5</answer> or <answer>5+7*3</answer>", SUM).reward == 1.0
    assert score("<answer>3*7+5</answer> or <answer>3+5+7</answer>", SUM).reward == 0.0
    assert score("3*7+5", SUM).components == {"correct": 0.0, "formatted": 0.0}
    assert score("<think><answer>3*7+5</answer></think>", SUM).reward == 0.0


def test_every_problem_can_be_solved_and_none_is_asked_twice() -> None:
    task = made(name="countdown", problems=60, held_out=20, numbers=(2, 3), largest=20)
    assert (len(task.train), len(task.held_out)) == (60, 20)
    given = [json.loads(problem.gold) for problem in (*task.train, *task.held_out)]
    assert len({(tuple(sorted(g["numbers"])), g["target"]) for g in given}) == 80
    assert {p.level for p in task.train} == {"2 numbers", "3 numbers"}
    for g in given:
        assert Fraction(g["target"]) in _reachable(tuple(map(Fraction, g["numbers"])))
        assert g["target"] not in g["numbers"]


def _reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """By trying everything."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set[Fraction]()
    for (i, a), (j, b) in itertools.permutations(enumerate(numbers), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for value in (a + b, a - b, a * b, *((a / b,) if b else ())):
            found |= _reachable((value, *rest))
    return found


def test_the_same_settings_give_the_same_problems_and_too_many_are_refused() -> None:
    assert made(name="countdown", problems=30) == made(name="countdown", problems=30)
    with pytest.raises(Refused, match="no 1001 different countdown problems"):
        made(name="countdown", problems=1000, held_out=1, numbers=(2, 2), largest=4, target=4)
    assert "between 2 and 6" in complaint(name="countdown", numbers=(1, 9))


def test_examples_are_turns_before_every_problem_rightly_solved_and_no_problems_themselves() -> None:
    task = made(name="countdown", numbers=(2, 3), problems=30, held_out=10, examples=4)
    turns = task.train[0].messages[:-1]
    assert [role for role, _ in turns] == ["user", "assistant"] * 4
    for problem in (*task.train, *task.held_out):
        assert problem.messages[:-1] == turns
        assert problem.messages[-1] not in turns
    for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True):
        numbers, target = question.split("numbers ")[1].split(", write")[0], question.split("equals ")[1].split(".")[0]
        gold = json.dumps({"numbers": [int(n) for n in numbers.split(", ")], "target": int(target)})
        assert score(answer, Problem(question, gold)).reward == 1.0
        assert score(answer, Problem(turns, gold)).reward == 1.0, "an answer like an example's is an answer"
    assert {sign for _, answer in turns[1::2] for sign in "+-*/" if f" {sign} " in answer} == set("+-*/")


def test_examples_change_nothing_else() -> None:
    plain = made(name="countdown", problems=20, held_out=5)
    assert all(isinstance(problem.prompt, str) for problem in (*plain.train, *plain.held_out))
