"""`make eval`: a model alone, on the path that training takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker.errors import Refused
from deploy.evaluate import recipe_of
from tests.system.pipeline import ROOT, Pipeline, wait_until

TINY = ROOT / "recipes" / "tiny.toml"


def test_a_model_is_evaluated_and_a_second_look_gives_the_same(tmp_path: Path, taught: Path) -> None:
    flags = ["--run.directory", str(tmp_path), "--monitoring.exporter_port", "0", "--sampling.group_size", "16"]
    command = [sys.executable, "-m", "deploy.evaluate", str(TINY), "--model", str(taught), "--task", "addition", *flags]
    records = []
    for _ in range(2):
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert said.returncode == 0, said.stderr
        assert "held-out problems" in said.stdout
        newest = max(tmp_path.glob("eval-*"), key=lambda path: path.stat().st_mtime)
        records.append(json.loads((newest / "summary.json").read_text()))
    assert len(list(tmp_path.glob("eval-*"))) == 2, "the first one stays as it is"
    for record in records:
        assert (record["problems"], record["samples"], record["failed"]) == (10, 160, 0)
        assert 0 < record["pass_at_1"] < record["pass_at"]["2"] < record["pass_at"]["16"], "it answers with some number"
        assert set(record["majority_at"]) == {"16"}
    first, second = ({k: v for k, v in record.items() if k != "time"} for record in records)
    assert first == second, "the same seeds, the same weights"


def test_one_that_is_killed_is_taken_up_again(tmp_path: Path, taught: Path) -> None:
    flags = ["--run.model", str(taught), "--run.steps", "1", "--learner.eval_problems", "10"]
    with Pipeline(tmp_path, flags) as run:
        run.start("consumer.examiner", "examiner")
        wait_until(lambda: run.client.exists(run.keys.fingerprint), "it has announced the run")
        run.generator()
        wait_until(lambda: run.ledger("eval").count("issued") == 10, "everything is asked for")
        run.processes["examiner"].kill()
        run.wait_for("examiner")
        run.start("consumer.examiner", "examiner")
        assert run.wait_for("examiner") == 0, run.log("examiner")
        assert run.wait_for("generator") == 0, run.log("generator")
        assert run.ledger("eval").balance().balanced
        assert run.ledger("eval").count("evaluated") == 10
        assert run.ledger().count("issued") == 0, "nothing is trained"
    records = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
    assert [record["eval"]["problems"] for record in records if "eval" in record] == [10]


def test_another_task_has_its_own_defaults_and_flags_have_the_last_word() -> None:
    recipe = recipe_of(TINY, "some/Model-7B", "countdown", ["--task.problems", "30"])
    assert recipe.run.name == "eval-some-Model-7B"
    assert recipe.task.name == "countdown"
    assert recipe.task.model_dump()["problems"] == 30
    assert recipe.learner.eval_problems > 1000
    assert recipe_of(TINY, "", "", []).task.name == "addition"
    with pytest.raises(Refused, match=r"tiny\.toml: task: name a task"):
        recipe_of(TINY, "m", "chess", [])
    with pytest.raises(Refused, match=r"no recipe at absent\.toml"):
        recipe_of(Path("absent.toml"), "m", "", [])
