"""The same verbs in containers and on Kubernetes: which commands they are, given to programs that write them down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.keep_data import without_data
from deploy.verbs import SECRETS, run
from tests.system.processes import ROOT

MANIFESTS = ROOT / "deploy/k8s"
FILES = ("users.acl", "learner.password", "generator.password", "monitor.password")
HUSH = "hush-this-is-secret"
# A program of any name that notes its arguments and what it is given; kubectl's answers are what a pipe needs.
RECORDER = f"""#!{sys.executable} -S
import json, os, sys
given = "" if sys.stdin.isatty() or "-" not in sys.argv else sys.stdin.read()
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], *([given] if given else [])]) + "\\n")
if "--dry-run=client" in sys.argv:
    print("kind: Secret")
if "kustomize" in sys.argv:
    print(open(os.environ["MANIFESTS"]).read(), end="")
sys.exit(int(os.environ.get("STATUS", "0")))
"""
BUILT = """\
apiVersion: v1
kind: Namespace
metadata:
  name: headrace
---
apiVersion: v1
data:
  notes: |
    kind: Namespace
kind: ConfigMap
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: learner-data
---
apiVersion: batch/v1
kind: Job
"""


class Machine:
    """A machine with docker and kubectl, of a kind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes, self.secrets = folder, folder / "notes", folder / "secrets"
        self.environ = {"NOTES": str(self.notes), "MANIFESTS": str(folder / "built.yaml"), "PATH": os.environ["PATH"]}
        (folder / "built.yaml").write_text(BUILT)
        self.secrets.mkdir()
        for name in FILES:
            (self.secrets / name).write_text(HUSH)

    def install(self, *programs: str) -> None:
        (self.folder / "bin").mkdir(exist_ok=True)
        for name in programs:
            (self.folder / "bin" / name).write_text(RECORDER)
            (self.folder / "bin" / name).chmod(0o755)
        self.environ["PATH"] = f"{self.folder / 'bin'}:{self.environ['PATH']}"

    def make(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """One `make`, on a machine without .venv: the Python is any."""
        command = ["make", *arguments, "DEVICE=cpu", f"PYTHON={sys.executable} -S"]
        if arguments[0] == "up":
            command.append(f"ARGS=--secrets {self.secrets}")
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=self.environ | environ, check=False
        )

    @property
    def noted(self) -> list[list[str]]:
        return [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.install("docker", "kubectl")
    return made


def words(line: str) -> list[str]:
    return line.split()


COMPOSE = "docker compose -f deploy/compose.yaml "


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("up", "up --detach --build"),
        ("down", "down"),
        ("stop", "down"),
        ("down VOLUMES=1", "down --volumes"),
        ("logs", "logs --follow --tail 20"),
        ("logs FOLLOW=0 ROLE=learner TAIL=5", "logs --tail 5 learner"),
        ("scale N=3", "up --detach --no-recreate --no-deps --scale generator=3 generator"),
        ("scale N=0", "up --detach --no-recreate --no-deps --scale generator=0 generator"),
    ],
)
def test_in_containers(machine: Machine, arguments: str, command: str) -> None:
    done = machine.make(*arguments.split(), "ENV=compose")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.noted == [words(COMPOSE + command)]


def test_containers_of_a_machine_with_a_gpu_are_given_it(machine: Machine) -> None:
    done = machine.make("scale", "N=1", "ENV=compose", "DEVICE=cuda", "DRY=1")
    assert "docker compose -f deploy/compose.yaml up" in done.stdout, "DEVICE=cpu comes later and counts"
    command = [sys.executable, "-m", "deploy.verbs", "down", "--env", "compose", "--device", "cuda", "--dry"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "docker compose -f deploy/compose.yaml -f deploy/compose.gpu.yaml down\n"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            "logs",
            "logs --follow --max-log-requests=50 --prefix --all-containers "
            "-l app.kubernetes.io/part-of=headrace --tail=20",
        ),
        (
            "logs ROLE=generator FOLLOW=0 TAIL=5",
            "logs --prefix --all-containers "
            "-l app.kubernetes.io/part-of=headrace,app.kubernetes.io/component=generator --tail=5",
        ),
        ("scale N=4", "scale deployment/generator --replicas=4"),
    ],
)
def test_on_kubernetes(machine: Machine, arguments: str, command: str) -> None:
    done = machine.make(*arguments.split(), "ENV=k8s")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.noted == [words(f"kubectl -n headrace {command}")]


needs_manifests = pytest.mark.skipif(not MANIFESTS.is_dir(), reason="there is no deploy/k8s in this checkout")


@needs_manifests
def test_kubernetes_has_the_secrets_before_what_needs_them_and_nobody_sees_one(machine: Machine) -> None:
    done = machine.make("up", "ENV=k8s", "OVERLAY=gpu")
    assert done.returncode == 0, done.stderr
    assert HUSH not in done.stdout + done.stderr + machine.notes.read_text()
    namespace, *secrets, everything = machine.noted
    assert namespace == words("kubectl apply -f deploy/k8s/base/namespace.yaml")
    assert everything == words("kubectl apply -k deploy/k8s/overlays/gpu")
    made, applied = (
        [noted for noted in secrets if verb in noted] for verb in ("create", "apply")
    )  # a pipe has no order
    assert [one[6] for one in made] == ["redis-users", "redis-learner", "redis-generator", "redis-monitor"]
    assert made[0][7:9] == [f"--from-file={machine.secrets / name}" for name in ("users.acl", "monitor.password")]
    assert applied == [[*words("kubectl -n headrace apply -f -"), "kind: Secret\n"]] * 4


@needs_manifests
def test_the_secrets_are_those_that_the_manifests_ask_for() -> None:
    asked = {
        name
        for path in MANIFESTS.rglob("*.yaml")
        for name in re.findall(r"secretName: ([\w-]+)(?!.*optional: true)", path.read_text())
    }
    assert asked == set(SECRETS)


@needs_manifests
def test_down_leaves_what_holds_data(machine: Machine) -> None:
    done = machine.make("down", "ENV=k8s")
    assert done.returncode == 0, done.stderr
    built, deleted = sorted(machine.noted, key=lambda noted: "delete" in noted)
    assert built == words("kubectl kustomize deploy/k8s/overlays/cpu")
    assert deleted[:-1] == words("kubectl delete --ignore-not-found -f -")
    assert deleted[-1] == without_data(BUILT)
    machine.notes.unlink()
    machine.make("down", "ENV=k8s", "VOLUMES=1")
    assert machine.noted == [words("kubectl delete --ignore-not-found -k deploy/k8s/overlays/cpu")]


def test_a_namespace_and_a_claim_hold_data_and_who_only_mentions_them_does_not() -> None:
    kept = without_data(BUILT)
    assert re.findall(r"^kind: (\w+)", kept, re.MULTILINE) == ["ConfigMap", "Job"]
    assert "    kind: Namespace\n" in kept


@needs_manifests
def test_what_fails_ends_it_before_anything_else_is_done(machine: Machine) -> None:
    assert machine.make("up", "ENV=k8s", STATUS="7").returncode != 0
    assert machine.noted == [words("kubectl apply -f deploy/k8s/base/namespace.yaml")]


@pytest.mark.parametrize("statuses", [(3, 0), (0, 3)])
def test_a_pipe_ends_with_the_status_of_whatever_failed(statuses: tuple[int, int]) -> None:
    with pytest.raises(SystemExit) as end:
        run([[sys.executable, "-S", "-c", f"raise SystemExit({status})"] for status in statuses])
    assert end.value.code == 3


@needs_manifests
def test_an_overlay_that_there_is_not_is_refused_by_name(machine: Machine) -> None:
    done = machine.make("up", "ENV=k8s", "OVERLAY=moon")
    assert re.fullmatch(r"headrace: no overlay 'moon': OVERLAY is one of cpu, .*\n", one_line(done))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What it said, besides make's own word."""
    assert (done.returncode, done.stdout) == (2, "")
    return "".join(line for line in done.stderr.splitlines(True) if not line.startswith("make"))


def test_what_cannot_be_done_is_one_line_and_nothing_is_run(machine: Machine) -> None:
    (machine.secrets / "learner.password").unlink()
    assert one_line(machine.make("up", "ENV=compose")) == (
        f"headrace: there is no {machine.secrets}/learner.password: `make acl` makes the users of Redis\n"
    )
    assert one_line(machine.make("scale", "N=many", "ENV=k8s")) == (
        "headrace: N is 'many' and must be a number from 0 to 9999: `make scale N=3`\n"
    )
    assert 'ENV is local, compose or k8s, not "swarm"' in machine.make("up", "ENV=swarm").stderr
    assert machine.noted == []


@pytest.mark.parametrize(("env", "program"), [("compose", "docker"), ("k8s", "kubectl")])
def test_a_program_that_is_not_installed_is_named(tmp_path: Path, env: str, program: str) -> None:
    machine = Machine(tmp_path)
    machine.environ["PATH"] = str(tmp_path / "bin")
    (tmp_path / "bin").mkdir()
    command = [sys.executable, "-m", "deploy.verbs", "logs", "--env", env]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=machine.environ, check=False)
    assert re.fullmatch(rf"headrace: ENV={env} needs {program}, which is not on the path: .*\n", one_line(done))


def test_a_dry_run_prints_and_runs_nothing(machine: Machine) -> None:
    done = machine.make("scale", "N=2", "ENV=k8s", "DRY=1")
    assert (done.returncode, done.stdout) == (0, "kubectl -n headrace scale deployment/generator --replicas=2\n")
    assert machine.noted == []


def test_what_the_program_says_is_the_last_word(machine: Machine) -> None:
    assert machine.make("down", "ENV=compose", STATUS="7").returncode == 2, "make's word for any failure"
    command = [sys.executable, "-m", "deploy.verbs", "down", "--env", "compose"]
    done = subprocess.run(command, cwd=ROOT, env=machine.environ | {"STATUS": "7"}, check=False)
    assert done.returncode == 7
