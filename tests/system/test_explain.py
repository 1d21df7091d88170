"""`make explain` on a real run: trained, degenerate and failed groups, and the numbers are those of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.loading import load
from consumer.objective.advantage import advantages
from consumer.objective.settings import ObjectiveSettings
from deploy.prepare import prepare
from monitoring.recipe import ViewRecipe
from monitoring.trail import Life, Trail
from tests.system.explained import REWARD
from tests.system.pipeline import ROOT, Pipeline, wait_until

STEPS = 5
TASK = ["--task.name", "tests/system/explained.py:Ways", "--task.reward", REWARD]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("explain")
    flags = ["--run.model", str(prepare("random:llama-tiny", folder / "models")), "--run.steps", str(STEPS)]
    flags += TASK
    with Pipeline(folder / "runs", flags) as made:
        made.learner()
        made.generator()
        assert made.wait_for("learner") == 0, made.log("learner")
        assert made.wait_for("generator") == 0, made.log("generator")
        yield made


@pytest.fixture(scope="module")
def trail(run: Pipeline) -> Trail:
    return Trail.read(run.client, run.keys)


@pytest.fixture(scope="module")
def steps(run: Pipeline) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
    return [record for record in records if "step" in record]


def explain(run: Pipeline, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitoring.explain", str(ROOT / run.recipe), *arguments]
    environ = {**{k: v for k, v in os.environ.items() if k != "FORCE_COLOR"}, "COLUMNS": "100"}
    flags = ["--broker.url", run.server.url]
    return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, env=environ, check=False)


def of(trail: Trail, verdict: str) -> list[Life]:
    return [life for life in trail.lives if life.verdict == verdict]


def test_every_group_with_a_verdict_is_in_the_log_both_sides_of_it(run: Pipeline, trail: Trail) -> None:
    verdicts = run.ledger().verdicts()
    assert verdicts["trained"] == 2 * STEPS
    assert min(verdicts["degenerate"], verdicts["failed"]) > 0
    assert {v: len(of(trail, v)) for v in verdicts} == verdicts
    assert trail.unreadable == 0
    for life in trail.lives:
        if life.use is not None:
            assert life.sampling is not None, life
            assert life.sampling.problem == int(life.ticket_id[-10:])
            assert [s for _, s in life.phases if s > 0]


def test_advantages_are_those_of_the_objective_for_the_rewards_that_the_generator_told_of(trail: Trail) -> None:
    for life in of(trail, "trained"):
        assert life.sampling is not None
        assert life.use is not None
        told = [answer.reward for answer in life.sampling.answers]
        assert [share.reward for share in life.use.rollouts] == told
        assert [share.tokens for share in life.use.rollouts] == [a.tokens for a in life.sampling.answers]
        expected = advantages(np.array(told, np.float64), [len(told)], ObjectiveSettings())
        assert [share.advantage for share in life.use.rollouts] == expected.tolist()
        assert life.sampling.level == "mixed"


def test_what_the_steps_say_is_what_their_groups_add_up_to(trail: Trail, steps: list[dict[str, Any]]) -> None:
    for record in steps:
        uses = [u for life in of(trail, "trained") if (u := life.use) is not None and u.step == record["step"]]
        shares = [share for use in uses for share in use.rollouts]
        tokens = sum(share.tokens for share in shares)
        assert len(uses) == record["groups"]["trained"]
        assert tokens == record["tokens"]
        assert max(use.staleness or 0 for use in uses) == record["staleness_max"]
        assert {use.version for use in uses} == {record["policy_version"] - 1}
        assert max(share.ratio_max or 0 for share in shares) == pytest.approx(record["ratio_max"], abs=1e-9)
        mean = sum((share.ratio_mean or 0) * share.tokens for share in shares) / tokens
        assert mean == pytest.approx(record["ratio_mean"])
        advantage = sum((share.advantage or 0) * share.tokens for share in shares) / tokens
        assert advantage == pytest.approx(record["advantage_mean"], abs=1e-9)


def test_each_way_is_explained_with_its_texts_and_reasons(run: Pipeline, trail: Trail) -> None:
    for verdict, words in (
        ("trained", ["trained in step", "advantage", "π/μ", "has learnt from it"]),
        ("degenerate", ["all rewards are equal"]),
        ("failed", ["sampled, and not fit for training", "reward –"]),
    ):
        life = of(trail, verdict)[0]
        assert life.sampling is not None
        said = explain(run, life.ticket_id)
        assert said.returncode == 0, said.stderr
        told = " ".join(said.stdout.split())  # lines are wrapped
        assert all(word in told for word in [life.ticket_id, verdict, *words]), told
        assert f"seed {life.sampling.seed}" in told
        assert "\\x1b[31m[bold]<b>" in told, "what a problem says is shown"
        assert "\x1b" not in said.stdout, "and does nothing"
        number = str(int(life.ticket_id[1:11]))
        assert explain(run, number).stdout == explain(run, life.ticket_id[:12]).stdout == said.stdout


def test_the_latest_are_listed(run: Pipeline, trail: Trail) -> None:
    said = explain(run)
    assert said.returncode == 0, said.stderr
    assert all(life.ticket_id in said.stdout for life in trail.lives[-10:])
    assert f"{len(trail.lives)} groups in the log" in said.stdout


def test_one_line_where_there_is_none(run: Pipeline) -> None:
    for arguments, line in (
        (["999999"], "has issued no ticket 999999"),
        (["t"], "groups begin with t"),
        (["e00000000-start-000001"], "evaluations are not in the audit log"),
        (["\x1b[31m"], "no group \N{REPLACEMENT CHARACTER}[31m"),
        (["1", "--run.name", "another"], "knows no run another"),
    ):
        said = explain(run, *arguments)
        assert (said.returncode, said.stdout) == (2, "")
        assert line in said.stderr
        assert len(said.stderr.splitlines()) == 1
    entries: Any = run.client.xrange(run.keys.audit)
    first = entries[0][1][b"ticket_id"].decode()
    run.client.xdel(run.keys.audit, *[entry_id for entry_id, of in entries if of[b"ticket_id"].decode() == first])
    assert "is not in the audit log any more" in explain(run, first).stderr


def test_a_finished_run_whose_redis_is_gone_is_read_from_what_it_left_on_disk(tmp_path: Path) -> None:
    """As after `make demo`: the launcher has stopped the server, whose data lies in the run's folder."""
    model = prepare("random:llama-tiny", tmp_path / "models")
    flags = ["--run.directory", str(tmp_path / "runs"), "--run.model", str(model), *TASK]
    command = [sys.executable, "-m", "deploy.launcher", str(ROOT / "recipes" / "tiny.toml"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny"
    for recipe, more in ((folder / "recipe.toml", []), (ROOT / "recipes" / "tiny.toml", flags[:2])):
        said = subprocess.run(
            [sys.executable, "-m", "monitoring.explain", str(recipe), "best", *more],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        assert "verdict" in said.stdout
    assert load(ViewRecipe, folder / "recipe.toml").broker.url, "which names a server that is no more"


def test_a_full_redis_costs_notes_and_nothing_else(tmp_path: Path) -> None:
    """The log may be as large as it likes to be, and nothing of it fits: its key is of another type."""
    flags = ["--run.model", str(prepare("random:llama-tiny", tmp_path / "models")), "--run.steps", "2"]
    with Pipeline(tmp_path / "runs", flags) as run:
        run.client.set(run.keys.audit, "somebody's")
        run.learner()
        run.generator()
        wait_until(lambda: run.processes["learner"].poll() is not None, "the learner has ended")
        assert run.wait_for("learner") == 0, run.log("learner")
        assert run.wait_for("generator") == 0, run.log("generator")
        assert run.ledger().balance().balanced
        assert run.ledger().verdicts()["trained"] == 4
        for name in ("learner", "generator"):
            assert run.log(name).count("the audit log has lost notes") == 1
