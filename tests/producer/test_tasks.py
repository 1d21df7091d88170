"""Tasks: splits that hold in every run, and verifiers that are neither generous nor petty."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from broker.errors import Refused
from producer.tasks import Problem, Task
from producer.tasks import addition as addition_task
from producer.tasks.registry import make_task
from producer.tasks.settings import AdditionSettings, Gsm8kSettings


def addition(digits: int = 1, held_out: int = 25) -> Task:
    return make_task(AdditionSettings(name="addition", digits=digits, held_out=held_out))


def summands(problem: Problem) -> tuple[int, int]:
    assert isinstance(problem.prompt, str)
    left, right = problem.prompt.removeprefix("What is ").removesuffix("?").split(" + ")
    return int(left), int(right)


# -- addition: problems ----------------------------------------------------------------------------


@pytest.mark.parametrize(("digits", "problems"), [(1, 100), (2, 8100), (3, 10_000), (9, 10_000)])
def test_every_sum_is_asked_once_and_its_gold_is_right(digits: int, problems: int) -> None:
    task = addition(digits)
    asked = [summands(p) for p in (*task.train, *task.held_out)]
    assert len(asked) == len(set(asked)) == problems
    for problem in (*task.train, *task.held_out):
        a, b = summands(problem)
        assert problem.gold == str(a + b)
        assert all(len(str(n)) == digits for n in (a, b))
        assert problem.level == ("1 digit" if digits == 1 else f"{digits} digits")


def test_one_digit_includes_nought() -> None:
    task = addition()
    assert {summands(p) for p in (*task.train, *task.held_out)} == {(a, b) for a in range(10) for b in range(10)}


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("held_out", [1, 24, 25, 99])
def test_a_held_out_sum_is_not_trained_the_other_way_round(digits: int, held_out: int) -> None:
    task = addition(digits, held_out)
    assert len(task.held_out) == held_out
    aside = {tuple(sorted(summands(p))) for p in task.held_out}
    trained = {tuple(sorted(summands(p))) for p in task.train}
    assert not aside & trained


def test_the_split_knows_no_seed_but_its_own() -> None:
    random.seed(7)
    assert addition(3).card() == addition(3).card()


def digest(task: Task) -> str:
    """Of the questions, split by split, in order."""
    return hashlib.sha256(
        repr([[p.prompt for p in split] for split in (task.train, task.held_out)]).encode()
    ).hexdigest()[:16]


def test_the_split_is_the_one_of_yesterday() -> None:
    # A change here makes held-out problems of earlier runs training problems of later ones: raise SPLIT_SEED knowingly.
    assert [summands(p) for p in addition(held_out=5).held_out] == [(0, 8), (8, 0), (4, 7), (7, 4), (8, 8)]
    assert digest(addition()) == "99cd8cb9f5d070e7"
    assert digest(addition(3)) == "41f736cace3ac04d"


def test_the_card_names_sizes_and_levels_and_hashes_every_problem() -> None:
    task = addition(2, 50)
    card = task.card()
    assert (card.name, card.train, card.held_out, card.labels) == ("addition", 8050, 50, ((0, "2 digits"),))
    assert card.content_hash != addition(2, 51).card().content_hash
    assert card.content_hash != addition(1, 50).card().content_hash


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(Refused, match=r"held_out = 100 leaves nothing.*100 problems"):
        addition(1, 100)


# -- addition: verifier ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "7.",
        "The answer is 7.",
        "3 + 4 = 7",
        "3+4=7",
        "3 + 4 = **7**",
        "It is $7$",
        "\\boxed{7}",
        "007",
        "+7",
        "first 3, then 7",
        "8? No: 7!",
        "seven, that is 7\n",
        "(7)",
        "3-4 is not it; 3 + 4 is 7",
        "10-7",  # no number is negative here
    ],
)
def test_addition_rewards(text: str) -> None:
    assert addition_task.score(text, Problem("What is 3 + 4?", "7")).reward == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seven",
        "3 + 4",
        "What is 3 + 4?",
        "3 and 4",
        "7 or 8",
        "17",
        "77",
        "70",
        "7.5",
        "0.7",
        "7.0",
        "-7",
        "= -7",
        "\u22127",
        "7,000",
        "7 3",
        "The sum of 3 and 4 is 7, since 3 + 4",
        "\u0667",  # a seven in another script
        "7" * 6000,
    ],
)
def test_addition_does_not_reward(text: str) -> None:
    verdict = addition_task.score(text, Problem("What is 3 + 4?", "7"))
    assert (verdict.reward, verdict.components) == (0.0, {"correct": 0.0})


def test_an_echo_scores_only_where_a_summand_is_the_sum() -> None:
    for problem in (*addition().train, *addition().held_out):
        a, b = summands(problem)
        for echo in (f"{a} + {b}", f"What is {a} + {b}?", f"{a} + {b} ="):
            assert addition_task.score(echo, problem).reward == float(b == a + b)


def test_long_sums_may_carry_separators() -> None:
    problem = Problem("What is 600 + 634?", "1234")
    assert addition_task.score("That makes 1,234.", problem).reward == 1.0
    assert addition_task.score("That makes 1,2,3,4.", problem).reward == 0.0
    assert addition_task.score("That makes 1,2345.", problem).reward == 0.0


# -- gsm8k: problems -------------------------------------------------------------------------------

ROW = {"question": "How many?", "answer": "There are <<3*4=12>>12.\nAnd one more.\n#### 1,013"}


def written(folder: Path, train: list[object], test: list[object]) -> Path:
    for name, rows in (("train", train), ("test", test)):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def gsm8k(path: Path | None, held_out: int = 1) -> Task:
    return make_task(Gsm8kSettings(name="gsm8k", path=path, held_out=held_out))


def test_gsm8k_reads_question_gold_and_steps(tmp_path: Path) -> None:
    separated = {**ROW, "question": "One\u2028line?"}  # JSON lets this stand in a line; str.splitlines would break it
    task = gsm8k(written(tmp_path, [ROW, separated], [ROW]))
    problem = task.train[0]
    assert isinstance(problem.prompt, str)
    assert problem.prompt.startswith("How many?\n\n")
    assert "####" in problem.prompt
    assert (problem.gold, problem.level) == ("1013", "2 steps")
    assert len(task.train) == 2
    assert task.card().labels == ((0, "2 steps"),)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("{", "train.jsonl, line 2: not JSON"),
        ({"question": "?"}, "problem 2: needs the text fields"),
        (["?"], "problem 2: not an object with fields"),
        ({"question": " ", "answer": "#### 1"}, "problem 2: needs the text fields"),
        ({"question": "?", "answer": "12"}, "problem 2: no number after `####`"),
        ({"question": "?", "answer": "#### many"}, "problem 2: no number after `####`"),
    ],
)
def test_a_malformed_problem_is_refused_by_its_place(tmp_path: Path, bad: object, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint) as refusal:
        gsm8k(written(tmp_path, [ROW, bad], [ROW]))
    assert "\n" not in str(refusal.value)


def test_missing_or_short_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot read .*train\.jsonl: No such file"):
        gsm8k(tmp_path)
    with pytest.raises(Refused, match=r"held_out = 2, but .* 1 problems"):
        gsm8k(written(tmp_path, [ROW], [ROW]), held_out=2)
    with pytest.raises(Refused, match="holds no problems"):
        gsm8k(written(tmp_path, [], [ROW]))


def test_without_data_or_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # as if it were not installed
    with pytest.raises(Refused, match=r"set task\.path"):
        gsm8k(None)
