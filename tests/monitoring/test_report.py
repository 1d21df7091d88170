"""What is left of a run: the figures are the run's own, and their file says that it is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.errors import Refused
from monitoring.report import summarise
from tests.monitoring.fabricated import BEGAN, TOKENS, Run
from tests.system.pipeline import ROOT


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    """As the launcher calls it, into a pipe."""
    command = [sys.executable, "-m", "monitoring.report", str(folder)]
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ, check=False)


def whole_run(tmp_path: Path) -> Run:
    """Seven steps that learn, the first of which took five minutes."""
    run = Run(tmp_path, steps=7, sections={"learner": {"order": "strict", "pipeline_depth": 3}})
    run.evaluate("start", 0, 0.2)
    run.plain_step(1, 0.1, seconds=300, waited=290, ages={0: 40})
    for step in range(2, 8):
        run.plain_step(step, 0.1 * step, seconds=10, waited=4, ages={1: 20, 3: 20})
    run.now += 20
    run.evaluate("end", 7, 0.8, samples=208)
    run.end()
    for path in (run.folder.recipe, run.folder.path):
        os.utime(path, (BEGAN - 60, BEGAN - 60))
    return run


def test_the_summary_adds_up_the_whole_run(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    summary = summarise(run.folder.path)
    exact = {k: v for k, v in summary.items() if not isinstance(v, float)}
    assert exact == {
        "run": "demo",
        "model": "smollm2-135m-instruct",
        "seed": 3,
        "steps": 7,
        "steps_planned": 7,
        "outcome": "finished",
        "pass_at_1_start_samples": 200,
        "pass_at_1_end_samples": 208,
        "pass_at": {"start": {"1": 0.2, "8": 0.4}, "end": {"1": 0.8, "8": 1.0}},
        "majority_at": {"start": {"8": 0.2}, "end": {"8": 0.8}},
        "pass_at_1_end_by": [],
        "staleness_max": 3,
        "max_staleness": 8,
        "order": "strict",
        "pipeline_depth": 3,
        "groups": {"trained": 14, "degenerate": 7, "stale": 0, "failed": 0},
        "completion_tokens_sampled": 7 * 12 * TOKENS,
        "completion_tokens_trained": 7 * 40,
        "unreadable_lines": 0,
    }
    rest = {k: v for k, v in summary.items() if isinstance(v, float)}
    assert rest == pytest.approx(
        {
            "minutes": (60 + 300 + 6 * 10 + 20) / 60,
            "reward_first": 0.1,
            "reward_first5": 0.3,
            "reward_last5": 0.5,
            "pass_at_1_start": 0.2,
            "pass_at_1_end": 0.8,
            "staleness_mean": 6 * 2 / 7,
            "generator_tokens_per_second": 12 * TOKENS / 10,  # the five minutes of the start are left out
            "learner_tokens_per_second": 4.0,
            "learner_wait_fraction": 0.4,
        }
    )


def test_a_degenerate_group_counts_in_the_reward_as_any_other(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1)
    run.step(1, {"trained": [[1.0, 0.0] * 2], "degenerate": [[1.0] * 4] * 3, "stale": [[0.0] * 4]})
    assert summarise(run.folder.path)["reward_last5"] == pytest.approx((2 + 12) / 20)


def test_a_repeated_step_counts_once(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=2)
    run.plain_step(1, 0.1)
    run.plain_step(2, 0.1)
    run.restart()
    run.plain_step(2, 0.9)
    summary = summarise(run.folder.path)
    assert summary["reward_last5"] == pytest.approx(0.5)
    assert summary["groups"]["trained"] == 4


def test_a_finished_run_leaves_its_figures_and_its_picture(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    done = report(run.folder.path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if "/" not in line) <= 80
    for said in (
        "7 of 7 in 7.3 min",
        "0.30 → 0.50",
        "0.20 → 0.80  (200 and 208 samples)",
        "mean 1.71, max 3 of 8  (order strict, depth 3)",
        "14 trained, 7 degenerate, 0 stale, 0 failed",
        "840 completion tokens sampled, 12 a second",
        "280 completion tokens trained, 4 a second",
        "40% of the time",
        str(run.folder.summary),
        str(run.folder.plot),
    ):
        assert said in done.stdout
    assert json.loads(run.folder.summary.read_text()) == summarise(run.folder.path)
    assert run.folder.plot.read_bytes().startswith(b"\x89PNG")
    assert not list(run.folder.path.glob(".*"))  # no temporary name is left


@pytest.mark.parametrize(("outcome", "said"), [("solved", ", solved: "), ("no signal", ", no signal: ")])
def test_a_run_that_ended_before_its_first_step_says_why(tmp_path: Path, outcome: str, said: str) -> None:
    run = Run(tmp_path)
    run.evaluate("start", 0, 1.0)
    run.end(outcome)
    done = report(run.folder.path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    summary = json.loads(run.folder.summary.read_text())
    assert (summary["outcome"], summary["steps"], summary["steps_planned"]) == (outcome, 0, 45)
    assert (summary["reward_last5"], summary["staleness_max"]) == (None, None)
    assert not run.folder.plot.exists()


def test_a_run_that_may_go_on_is_not_ended_by_a_look_at_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1)
    done = report(run.folder.path)
    assert done.returncode == 0, done.stderr
    assert "the run is not over" in done.stdout
    assert run.folder.plot.exists()
    assert not run.folder.finished


def test_a_picture_that_cannot_be_written_leaves_no_summary(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    run.folder.plot.mkdir()
    (run.folder.plot / "in the way").touch()
    done = report(run.folder.path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"headrace: cannot write to {run.folder.path}: ")
    assert not run.folder.finished
    assert not list(run.folder.path.glob(".*"))


def test_nothing_to_report_is_one_clear_line(tmp_path: Path) -> None:
    empty = Run(tmp_path, "empty").folder
    no_recipe = tmp_path / "no-recipe"
    no_recipe.mkdir()
    for folder, cause in (
        (empty.path, f"headrace: {empty.path} holds no step yet: see {empty.log('learner')}\n"),
        (tmp_path / "absent", f"headrace: no run folder {tmp_path / 'absent'}: name one, for example runs/demo\n"),
        (no_recipe, f"headrace: no recipe at {no_recipe / 'recipe.toml'}"),
    ):
        done = report(folder)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(cause)
        assert done.stderr.count("\n") == 1
    with pytest.raises(Refused, match="holds no step"):
        summarise(empty.path)
