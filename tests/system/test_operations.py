"""What docs/operations.md tells people to do, done to a run that goes on: nothing is lost by it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from broker import acl
from broker.embedded import EmbeddedServer
from broker.loading import SECTIONS
from deploy.recipe import Recipe
from tests.faults import Faulty
from tests.system.pipeline import ROOT, Pipeline, wait_until

GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
STEPS = ["--run.steps", "8", "--learner.checkpoint_every", "2"]


def as_user(run: Pipeline, secrets: Path, role: str) -> list[str]:
    url = run.server.url.replace("://", f"://{role}@")
    return ["--broker.url", url, "--broker.password_file", str(secrets / f"{role}.password")]


def at_work(run: Pipeline, name: str) -> bool:
    """It has begun: who only begins refuses a server that is away."""
    log = run.folder / f"{name}.log"
    return log.exists() and "refreshed" in log.read_text()


def make_acl(secrets: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "broker.acl", "--out", str(secrets), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def let_root_in(secrets: Path) -> None:
    """This test's own user, who looks on."""
    users = secrets / acl.FILE
    users.write_text(users.read_text() + "user root on >root ~* &* +@all\n")


# Longer than the others, so that it is not over before all of that has happened.
MANY = ["--run.steps", "60", "--learner.checkpoint_every", "2", "--learner.max_degenerate_in_a_row", "100000"]


def test_a_password_is_rotated_under_a_run(tmp_path: Path, taught: Path) -> None:
    secrets = tmp_path / "secrets"
    assert make_acl(secrets).returncode == 0
    let_root_in(secrets)

    class Guarded(Faulty):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder, acl=secrets)

        @property
        def url(self) -> str:
            return super().url.replace("://", "://root:root@") if self.looked_at else super().url

        looked_at = False

    with Pipeline(tmp_path / "runs", [*MANY, "--run.model", str(taught)], server_class=Guarded) as run:
        server = run.server
        assert isinstance(server, Guarded)
        server.looked_at = True
        run.client.close()
        run.client = type(run.client).from_url(server.url)
        server.looked_at = False

        def anew() -> None:
            """The server reads its users when it starts."""
            let_root_in(secrets)
            server.crash()
            server.start()

        run.learner(*as_user(run, secrets, "learner"))
        run.generator("before", *as_user(run, secrets, "generator"))
        wait_until(lambda: run.step() >= 2, "the run goes on")
        before = (secrets / "generator.password").read_text()
        assert make_acl(secrets, "--rotate", "generator").returncode == 0
        assert "there would be three" in make_acl(secrets, "--rotate", "generator").stderr
        assert run.terminate("before") == 0
        run.generator("again", *as_user(run, secrets, "generator"))  # one that starts just now is not locked out
        wait_until(lambda: at_work(run, "again"), "it is at work")
        anew()
        wait_until(lambda: run.step() >= 4, "with the old password")
        assert make_acl(secrets, "--switch", "generator").returncode == 0
        assert (secrets / "generator.previous").read_text() == before != (secrets / "generator.password").read_text()
        assert "there would be three" in make_acl(secrets, "--rotate", "generator").stderr
        assert run.terminate("again") == 0
        run.generator("after", *as_user(run, secrets, "generator"))
        wait_until(lambda: at_work(run, "after") and run.step() >= 6, "with the new one")
        assert make_acl(secrets, "--forget", "generator").returncode == 0
        anew()
        assert run.wait_for("learner") == 0
        assert run.wait_for("after") == 0
        assert run.ledger().balance().balanced
        (secrets / "generator.password").write_text(before)
        run.generator("late", *as_user(run, secrets, "generator"))
        assert run.wait_for("late") == 2
        assert "wrong user name or password" in run.log("late")


def test_redis_moves_to_another_machine(tmp_path: Path, taught: Path) -> None:
    with Pipeline(tmp_path / "runs", [*STEPS, "--run.model", str(taught)]) as run:
        run.learner()
        run.generator()
        wait_until(lambda: run.step() >= 3, "the run goes on")
        assert run.terminate("generator") == 0
        run.processes["learner"].kill()
        run.processes["learner"].wait()
        run.server.stop()
        shutil.copytree(run.server.folder, tmp_path / "there")
        run.server = EmbeddedServer(tmp_path / "there").start()
        run.client = type(run.client).from_url(run.server.url)
        run.learner()
        run.generator()
        assert (run.wait_for("learner"), run.wait_for("generator")) == (0, 0)
        assert run.ledger().balance().balanced
        assert run.ledger().verdicts()["trained"] == 8 * 2
        assert "taken up from a checkpoint" not in run.log("learner"), "nothing was made anew"


def test_a_backup_of_the_run_s_folder_is_enough(tmp_path: Path, taught: Path) -> None:
    """With a Redis that is newer it is a rollback, which somebody has to ask for; without one, nothing is asked."""
    with Pipeline(tmp_path / "runs", [*STEPS, "--run.model", str(taught)]) as run:
        run.learner()
        run.generator()
        wait_until(lambda: (run.run_folder / "checkpoints").is_dir() and run.step() >= 3, "a checkpoint is there")
        run.processes["learner"].kill()
        run.processes["learner"].wait()
        shutil.copytree(run.run_folder, tmp_path / "backup")
        run.learner()
        assert run.wait_for("learner") == 0
        shutil.rmtree(run.run_folder)
        shutil.copytree(tmp_path / "backup", run.run_folder)
        run.learner()
        assert run.wait_for("learner") == 2
        refusal = run.log("learner").splitlines()[-1]
        step = re.search(r"--learner\.resume (\d+) goes back to it for good", refusal)
        assert step, refusal
        run.learner("--learner.resume", step[1])
        run.generator("again")
        assert (run.wait_for("learner"), run.wait_for("again")) == (0, 0)
        assert run.ledger().balance().balanced
        lines = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
        assert {line["step"] for line in lines if "step" in line} == set(range(1, 9))


# -- the page ---------------------------------------------------------------------------------------------------------


def test_every_verb_and_every_key_on_the_page_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for verb in set(re.findall(r"`?make ([a-z-]+)", GUIDE)):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb
    keys = set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_]+)", GUIDE))
    assert len(keys) > 10
    for key in keys:
        section, _, name = key.partition(".")
        kind = Recipe.model_fields[section].annotation
        assert name in getattr(kind, "model_fields", {name: None}), key


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", GUIDE))))
def test_every_file_that_the_page_links_to_is_there(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
