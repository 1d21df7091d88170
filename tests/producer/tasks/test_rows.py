"""Problems that are rows of a file: `math` and `jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.errors import Refused
from producer.tasks.maths import last_box
from tests.producer.tasks.made import complaint, made, written

ROWS = [{"question": f"What is {n}?", "answer": str(n), "kind": "odd" if n % 2 else "even"} for n in range(10)]
MATH: list[dict[str, Any]] = [
    {"problem": "Half?", "solution": "So \\boxed{\\frac{1}{2}}.", "level": "Level 1", "type": "Algebra"},
    {"problem": "Two?", "answer": "2", "level": "Level 2", "type": "Geometry"},
    {"problem": "Three?", "answer": 3, "level": "Level 2", "type": "Algebra"},
]


def test_rows_are_set_aside_by_their_number_alone_and_never_trained_on(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl", ROWS)
    keys: dict[str, Any] = {"name": "jsonl", "path": file, "level_field": "kind", "verifier": "numeric"}
    task, more = made(**keys, held_out=3), made(**keys, held_out=4)
    assert [len(task.train), len(task.held_out)] == [7, 3]
    assert sorted(p.gold for p in (*task.train, *task.held_out)) == [str(n) for n in range(10)]
    assert {p.gold for p in task.held_out} < {p.gold for p in more.held_out}
    assert task.held_out[0].level == ("odd" if int(task.held_out[0].gold) % 2 else "even")
    assert task.parts[0].scoring.verifier == "producer.verifiers.numeric:score"
    assert made(**keys, held_out=0).held_out == ()


def test_a_second_file_or_a_folder_s_test_split_is_held_out(tmp_path: Path) -> None:
    train, test = written(tmp_path / "train.jsonl", ROWS[:6]), written(tmp_path / "test.jsonl", ROWS[6:])
    for where in ({"path": train, "held_out_path": test}, {"path": tmp_path}):
        task = made(name="jsonl", held_out=2, **where)
        assert [p.gold for p in task.train] == ["0", "1", "2", "3", "4", "5"]
        assert {p.gold for p in task.held_out} < {"6", "7", "8", "9"}


def test_a_template_takes_fields_and_only_takes_some_rows(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl", ROWS)
    task = made(name="jsonl", path=file, template="[{kind}] {question} {{}}", only={"kind": ["odd"]}, held_out=1)
    assert {p.prompt for p in (*task.train, *task.held_out)} == {f"[odd] What is {n}? {{}}" for n in (1, 3, 5, 7, 9)}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"template": "{nothing}"}, "problem 1: needs text in the field `nothing`"),
        ({"template": "no field"}, "task.template names no field"),
        ({"template": "{question"}, "task.template: expected '}'"),
        ({"template": "{question.__class__}"}, "task.template names no field"),
        ({"answer_field": "gold"}, "problem 1: needs text in the field `gold`"),
        ({"held_out": 10}, "held_out = 10, but .* has 10 problems"),
        ({"only": {"kind": ["prime"]}}, "holds no problems"),
        ({"verifier": "nowhere.py:score"}, "cannot load nowhere.py:score"),
    ],
)
def test_what_cannot_be_is_refused_by_its_place(tmp_path: Path, keys: dict[str, Any], why: str) -> None:
    file = written(tmp_path / "mine.jsonl", ROWS)
    with pytest.raises(Refused, match=why) as refusal:
        made(**{"name": "jsonl", "path": file, "held_out": 1, **keys})
    assert "\n" not in str(refusal.value)


def test_rows_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    for text, why in (("{", "line 1: not JSON"), ("[1]\n", "problem 1: not an object"), ("", "holds no problems")):
        file.write_text(text)
        with pytest.raises(Refused, match=why):
            made(name="jsonl", path=file)
    with pytest.raises(Refused, match=r"cannot read .*No such file"):
        made(name="jsonl", path=tmp_path / "absent.jsonl")
    assert complaint(name="jsonl") == "Value error, give either path or hub"


def test_mathematics_takes_its_answer_from_a_field_or_the_last_box(tmp_path: Path) -> None:
    file = written(tmp_path / "math.jsonl", MATH)
    task = made(name="math", path=file, held_out=0)
    assert [p.gold for p in task.train] == ["\\frac{1}{2}", "2", "3"]
    assert [p.level for p in task.train] == ["Level 1", "Level 2", "Level 2"]
    assert isinstance(task.train[0].prompt, str)
    assert task.train[0].prompt.endswith("\\boxed{}.")
    assert len(made(name="math", path=file, held_out=0, only={"type": ["Algebra"]}).train) == 2
    assert "can be gamed" in complaint(name="math", path=file, answer=["last_number"])


def test_the_last_box_may_hold_braces_and_must_end() -> None:
    assert last_box("\\boxed{1} then \\boxed{\\frac{2}{\\sqrt{3}}}, at last.") == "\\frac{2}{\\sqrt{3}}"
    for text in ("no box", "\\boxed{1"):
        with pytest.raises(ValueError, match=r"no .boxed"):
            last_box(text)
