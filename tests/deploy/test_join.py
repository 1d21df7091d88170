"""A generator with nothing but Redis' address and a model joins a run, and is told in one line why it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.loading import load
from consumer.recipe import ProcessRecipe
from deploy.join import joined
from deploy.prepare import prepare
from deploy.recipe import read
from tests.system.pipeline import ROOT, Pipeline, wait_until

TINY = ROOT / "recipes" / "tiny.toml"


def announced(redis: redis_library.Redis, keys: Keys, *flags: str) -> None:
    """As a learner does, which knows its own sections alone."""
    of = load(ProcessRecipe, TINY, ["--run.name", keys.run, *flags], {})
    redis.set(keys.recipe, json.dumps(of.whole()))


def where(server: EmbeddedServer, *flags: str) -> list[str]:
    return ["--broker.url", server.url, *flags]


def test_what_is_joined_is_the_learner_s_whole_recipe(
    redis: redis_library.Redis, redis_server: EmbeddedServer, keys: Keys, tmp_path: Path
) -> None:
    theirs = [
        "--broker.url",
        "rediss://learner@inside:6379",
        "--broker.tls_ca",
        "/etc/ca.pem",
        "--broker.lease_seconds",
        "7",
    ]
    announced(redis, keys, *theirs, "--policy.backend", "redis", "--generator.slots", "5", "--task.digits", "2")
    found = joined(keys.run, where(redis_server, "--run.model", str(tmp_path), "--generator.threads", "3"))
    asked = [
        "--run.name",
        keys.run,
        "--policy.backend",
        "redis",
        "--broker.lease_seconds",
        "7",
        "--generator.slots",
        "5",
    ]
    asked += ["--task.digits", "2", "--generator.threads", "3", "--run.model", str(tmp_path)]
    assert found == read(TINY, [*asked, *where(redis_server)])


@pytest.mark.parametrize(
    ("announce", "flags", "said"),
    [
        (["--policy.backend", "redis"], [], "give its name or directory: --run.model, or HEADRACE_RUN__MODEL"),
        ([], ["--run.model", "."], "have the learner use policy.backend = redis"),
        (["--policy.backend", "redis"], ["--run.model", ".", "--generator.slots", "0"], "generator.slots"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    redis: redis_library.Redis,
    redis_server: EmbeddedServer,
    keys: Keys,
    tmp_path: Path,
    announce: list[str],
    flags: list[str],
    said: str,
) -> None:
    announced(redis, keys, "--run.model", "/models/theirs", "--run.directory", str(tmp_path), *announce)
    done = _role("producer", "--join", keys.run, *where(redis_server, *flags))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("headrace: ")
    assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["producer", "--join", "", "--broker.url", "redis://127.0.0.1:1"], "--join NAME, or HEADRACE_RUN__NAME"),
        (["producer", "--join", "demo"], "broker.url is not set"),
        (["producer", "--join", "demo", "--broker.url", "redis://127.0.0.1:1"], "no Redis at 127.0.0.1:1"),
        (["consumer", "--join", "demo"], "invalid choice: 'consumer'"),
    ],
)
def test_who_does_not_know_where_to_go_is_told(words: list[str], said: str) -> None:
    done = _role(*words)
    assert done.returncode == 2
    assert said in done.stderr


def _role(*words: str) -> Any:
    command = [sys.executable, "-m", "deploy.role", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), timeout=60)


def test_a_generator_joins_from_a_folder_of_its_own_and_the_run_ends(tmp_path: Path) -> None:
    """It shares no file with the learner but the model's, under another path."""
    model, theirs = prepare("random:llama-tiny", tmp_path / "models"), tmp_path / "elsewhere"
    theirs.mkdir()
    (theirs / "model").symlink_to(model)
    flags = ["--policy.backend", "redis", "--run.model", str(model), "--run.steps", "3"]
    with Pipeline(tmp_path / "runs", flags) as run:
        run.learner()
        command = [sys.executable, "-m", "deploy.role", "producer", "--join", run.name, "--broker.url", run.server.url]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(theirs), "HEADRACE_RUN__MODEL": "model"}
        with (tmp_path / "generator.log").open("w") as log:
            generator = subprocess.Popen(command, cwd=theirs, env=environment, stdout=log, stderr=log)
        try:
            assert run.wait_for("learner") == 0
            assert generator.wait(60) == 0, (tmp_path / "generator.log").read_text()
        finally:
            generator.kill()
            generator.wait()
        assert run.ledger().balance().balanced
        wait_until(lambda: run.client.hlen(run.keys.weights) > 0, "weights went through Redis")
        assert not [path for path in theirs.glob("headrace-*") if path.is_dir()], "what was fetched is gone"
