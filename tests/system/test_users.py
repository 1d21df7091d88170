"""A whole run in which every process comes in as its own user, and nothing that it tries is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from broker import acl
from broker.roles import ROLES, rules
from deploy.prepare import prepare
from tests.system.pipeline import ROOT, Pipeline


def test_a_run_whose_processes_have_users_of_their_own(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    acl.write(secrets, "tiny", {})
    model = prepare("random:llama-tiny", tmp_path / "models")
    with Pipeline(tmp_path / "runs", ["--run.model", str(model), "--run.steps", "3"]) as run:
        for role in ROLES:
            password = acl.password_file(secrets, role).read_text().strip()
            run.client.execute_command("ACL", "SETUSER", role, "reset", f">{password}", *rules(role, "tiny"))

        def user(role: str) -> list[str]:
            url = run.server.url.replace("://", f"://{role}@")
            return ["--broker.url", url, "--broker.password_file", str(secrets / f"{role}.password")]

        run.learner(*user("learner"))
        run.generator("generator", *user("generator"))
        assert run.wait_for("learner") == 0, run.log("learner")
        assert run.wait_for("generator") == 0, run.log("generator")
        assert run.ledger().balance().balanced
        assert run.ledger().verdicts()["trained"] == 3 * 2

        books = books_of(run, *user("monitor"))
        assert books.returncode == 0, books.stderr
        assert "trained 6" in books.stdout
        assert refused(run) == []

        stranger = books_of(run, *user("monitor"), "--run.name", "another")
        assert stranger.returncode == 2
        (line,) = stranger.stderr.splitlines()
        assert line.startswith("headrace: Redis refuses this user: ")


def books_of(run: Pipeline, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitoring.books", run.recipe, "--run.directory", str(run.folder), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ})


def refused(run: Pipeline) -> list[Any]:
    """What the server refused to anybody, but for a client library's introduction of itself."""
    log: Any = run.client.execute_command("ACL", "LOG")
    return [entry for entry in log if "setinfo" not in repr(entry).lower()]
