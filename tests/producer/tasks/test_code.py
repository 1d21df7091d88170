"""Functions with unit tests: rows as in MBPP, of which those that are no problem are left out and counted."""

from __future__ import annotations

import asyncio
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import structlog

from broker.errors import Refused
from broker.loading import load
from producer.settings import GeneratorRecipe
from producer.tasks.asserts import read_asserts
from producer.tasks.code import OWN
from producer.verifiers.code import FunctionTests
from producer.verify import VerifierPool
from tests.producer.sandbox.available import needs_lock
from tests.producer.tasks.made import complaint, made, scored, section, written

ROWS = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()]
MBPP: list[dict[str, Any]] = [
    {
        "text": "Write a function to find the volume of a cuboid.",
        "code": "def volume_cuboid(l,w,h):\r\n  volume=l*w*h\r\n  return volume",
        "task_id": 1,
        "test_setup_code": "",
        "test_list": [f"assert volume_cuboid({n},2,3)=={6 * n} " for n in (1, 5, 10)],
        "challenge_test_list": [],
    }
] * 4
USELESS = {
    "one test, which is shown": {"text": "Add.", "test_list": ["assert add(1, 2) == 3"]},
    "a constant will do": {
        "text": "Is it?",
        "test_list": ["assert f(1) == True", "assert f(2) == 1", "assert f(3)==1.0"],
    },
    "an object": {"text": "Tree?", "test_list": ["assert f(root) == False", "assert f(root1) == True"]},
    "no tests": {"text": "Add.", "test_list": []},
    "tests that are text": {"text": "Add.", "test_list": "assert add(1, 2) == 3"},
    "no text": {"text": " ", "test_list": ["assert f(1) == 1", "assert f(2) == 2"]},
    "two functions": {"text": "Add.", "test_list": ["assert f(1) == 1", "assert g(2) == 2"]},
}


@needs_lock
def test_our_own_functions_need_no_file_and_their_own_code_passes() -> None:
    task = made(name="code")
    assert (len(task.train), len(task.held_out)) == (len(ROWS) - 10, 10)
    assert (
        {problem.level for problem in task.train} == {problem.level for problem in task.held_out} == {"easy", "medium"}
    )
    codes = {read_asserts(row["test_list"])[0].entry: row["code"] for row in ROWS}
    for problem in (*task.train, *task.held_out):
        code = codes[FunctionTests.decode(problem.gold).entry]
        assert scored(task, problem, f"```python\n{code}\n```").reward == 1.0, code


def test_our_own_functions_have_tests_enough() -> None:
    assert len(ROWS) >= 40
    for row in ROWS:
        calls = read_asserts(row["test_list"])
        assert len(calls) >= 5
        assert len({call.expect for call in calls}) >= 2
        assert f"def {calls[0].entry}(" in row["code"]
        assert row["code"] not in row["text"]
    assert len({row["text"] for row in ROWS}) == len(ROWS)


@needs_lock
def test_a_prompt_shows_some_tests_and_no_others(tmp_path: Path) -> None:
    file = written(tmp_path / "mbpp.jsonl", MBPP)
    (problem, *_) = made(name="code", path=file, held_out=1).train
    assert problem.prompt == (
        "Write a function to find the volume of a cuboid.\n\nYour code must pass:\nassert volume_cuboid(1,2,3)==6\n\n"
        "Put the whole function `volume_cuboid` into one ```python block."
    )
    assert FunctionTests.decode(problem.gold).calls == (("(1, 2, 3)", "6"), ("(5, 2, 3)", "30"), ("(10, 2, 3)", "60"))
    (problem, *_) = made(name="code", path=file, held_out=1, shown_tests=2).train
    assert "volume_cuboid(5,2,3)" in problem.prompt
    assert "volume_cuboid(10,2,3)" not in problem.prompt
    (problem, *_) = made(name="code", path=file, held_out=1, shown_tests=0).train
    assert "assert" not in problem.prompt


@needs_lock
def test_a_folder_has_splits_and_fields_have_names(tmp_path: Path) -> None:
    renamed = [{"prompt": row["text"], "tests": row["test_list"], "task_id": row["task_id"]} for row in MBPP]
    written(tmp_path / "train.jsonl", renamed)
    written(tmp_path / "test.jsonl", renamed[:2])
    keys = {"prompt_field": "prompt", "tests_field": "tests", "level_field": "task_id"}
    task = made(name="code", path=tmp_path, held_out=2, seconds=1.5, **keys)
    assert (len(task.train), len(task.held_out), task.train[0].level) == (4, 2, "1")
    assert task.parts[0].scoring.options == {"seconds": 1.5}
    assert task.card().components == ("correct", "formatted", "passed")


@needs_lock
def test_rows_that_are_no_problem_are_left_out_and_counted_in_one_line(tmp_path: Path) -> None:
    file = written(tmp_path / "mbpp.jsonl", [*USELESS.values(), *MBPP])
    with structlog.testing.capture_logs() as logs:
        task = made(name="code", path=file, held_out=1)
    assert len(task.train) + len(task.held_out) == len(MBPP)
    (line,) = (entry for entry in logs if entry["event"] == "problems left out")
    assert (line["left_out"], line["kept"]) == (len(USELESS), len(MBPP))
    assert line["first"] == "problem 1: all of its tests would be shown (1 of 1)"


@needs_lock
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("one test, which is shown", r"all of its tests would be shown \(1 of 1\)"),
        ("a constant will do", r"a constant passes its tests \(True\)"),
        ("an object", r"cannot read the test 'assert f\(root\) == False'"),
        ("no tests", "needs a list of asserts in the field `test_list`"),
        ("tests that are text", "needs a list of asserts in the field `test_list`"),
        ("no text", "needs text in the field `text`"),
        ("two functions", "the tests must call exactly one function"),
    ],
)
def test_a_file_in_which_there_is_none_is_refused_by_its_first_reason(tmp_path: Path, name: str, why: str) -> None:
    file = written(tmp_path / "mine.jsonl", [USELESS[name]] * 3)
    with pytest.raises(Refused, match=f"none of its 3 problems can be used, such as problem 1: {why}") as refusal:
        made(name="code", path=file, held_out=0)
    assert "\n" not in str(refusal.value)


def test_where_programs_cannot_be_locked_up_there_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Refused, match=r"programs cannot be locked up here .*nothing runs outside a sandbox"):
        made(name="code")


def test_sections_that_cannot_be() -> None:
    assert section(name="code").held_out == 10
    assert "give either path or hub" in complaint(name="code", path="a.jsonl", hub="b")
    assert "give either path or hub" in complaint(name="code", held_out_path="a.jsonl")
    assert "held_out_path has no effect with hub" in complaint(name="code", hub="a", held_out_path="a.jsonl")
    assert "greater than or equal to 0" in complaint(name="code", shown_tests=-1)
    assert "Extra inputs" in complaint(name="code", answer=["boxed"])


def recipe(tmp_path: Path, task: str, *flags: str) -> GeneratorRecipe:
    file = tmp_path / "recipe.toml"
    file.write_text(f'[run]\nname = "x"\nmodel = "m"\nsteps = 1\n[sampling]\nmax_tokens = 8\n{task}')
    return load(GeneratorRecipe, file, list(flags), {})


CODE = '[task]\nname = "code"\n'
MIXTURE = '[task]\nname = "mixture"\n[[task.parts]]\nname = "addition"\n[[task.parts]]\nname = "code"\n'


@pytest.mark.parametrize("task", [CODE, MIXTURE])
def test_a_program_s_time_ends_before_its_verifier_s(tmp_path: Path, task: str) -> None:
    recipe(tmp_path, task)
    recipe(tmp_path, task + "seconds = 4\n")
    recipe(tmp_path, task + "seconds = 20\n", "--generator.verifier_seconds", "30")
    for seconds in (4.5, 5, 60):
        with pytest.raises(Refused, match=r"must be a second below generator\.verifier_seconds = 5") as refusal:
            recipe(tmp_path, f"{task}seconds = {seconds}\n")
        assert "\n" not in str(refusal.value)


@needs_lock
def test_it_is_a_part_of_a_mixture_like_any_other() -> None:
    task = made(name="mixture", parts=[{"name": "addition", "held_out": 4}, {"name": "code", "weight": 2.0}])
    sum_ = task.train[0]
    even = next(p for p in (*task.train, *task.held_out) if p.gold.startswith('["is_even"'))
    assert (sum_.part, even.part, [part.name for part in task.parts]) == (0, 1, ["addition", "code"])

    async def run() -> list[float]:
        pool = VerifierPool([part.scoring for part in task.parts], 1)
        await pool.start()
        try:
            good = "```python\ndef is_even(n):\n    return not n % 2\n```"
            verdicts = [*await pool.verify(sum_, [sum_.gold, good]), *await pool.verify(even, [good, sum_.gold])]
            return [verdict.reward for verdict in verdicts]
        finally:
            await pool.stop()

    assert asyncio.run(run()) == [1.0, 0.0, 1.0, 0.0]
