"""`python -m tests.system.images`: the images built, and a run of them, and what came of it (`make images-test`).

Every check is a row of benchmarks/images.md. A run is Redis, learner, generator and exporter, each a container of its
own that shares nothing with the others but the loopback interface of the first and the volumes of the compose file;
there is no other network, so nothing is downloaded.

--engine names the engine, with the options that it always gets; --build-flags and --run-flags are what this machine
needs beside ours. --base stand-in makes a base image of Debian's packages where no registry can be reached.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import acl
from tests.deploy.dockerfile import Dockerfile
from tests.system.base_image import stand_in
from tests.system.engine import VOLUMES, Engine
from tests.system.pipeline import wait_until
from tests.system.processes import ROOT

FILE, TABLE = ROOT / "deploy" / "Dockerfile", ROOT / "benchmarks" / "images.md"
TARGETS = ("tools", "learner", "generator")
RECIPE, SECRETS = "/etc/headrace/recipe.toml", "/run/secrets/headrace"
VLLM = {
    "HEADRACE_GENERATOR__ENGINE": "vllm",
    "HEADRACE_GENERATOR__ENFORCE_EAGER": "true",
    "HEADRACE_GENERATOR__KV_CACHE_GIB": "0.25",
}
MOUNTED = {"dev", "proc", "run", "sys", "tmp", *VOLUMES}
LOOK = f"""
import importlib.util, os, pathlib, shutil
found = (importlib.util.find_spec(one) is not None for one in ("torch", "vllm", "pip"))
print(os.getuid(), *found, shutil.which("gcc"))
for path in ("/app/new", "/app/broker/cli.py", "/etc/passwd", "/usr/bin/new", "/new"):
    try:
        open(path, "a")
    except OSError as error:
        print(path, error.strerror)
for top, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if top != "/" or one not in {MOUNTED}]
    for path in (pathlib.Path(top, name) for name in (*folders, *files)):
        if not path.is_symlink() and (path.owner() == "headrace" or path.stat().st_mode & 0o1002 == 2):
            print("could be written:", path)
"""


class Examination:
    """The images of one device, and the rows of the table."""

    def __init__(self, engine: Engine, base: str, device: str) -> None:
        self.engine, self.base, self.device = engine, base, device
        self.rows: list[str] = []

    @contextmanager
    def row(self, what: str) -> Iterator[list[str]]:
        """One check: what it says is put in the table with its seconds."""
        print(f"{what} … ", end="", flush=True)
        began, said = time.monotonic(), list[str]()
        yield said
        seconds = time.monotonic() - began
        print(f"{' '.join(said)} ({seconds:.0f} s)", flush=True)
        self.rows.append(f"| {what} | {' '.join(said)} | {seconds:.0f} |")

    def image(self, target: str) -> str:
        return f"headrace/{target}:test-{self.device}"

    def build(self) -> None:
        below = self.engine.inspect(self.base)["Size"]
        for target in TARGETS:
            with self.row(f"build `{target}`") as said:
                arguments = ["--build-arg", f"BASE={self.base}", "--build-arg", f"DEVICE={self.device}"]
                self.engine.build(FILE, target, self.image(target), *arguments)
                size = self.engine.inspect(self.image(target))["Size"]
                said.append(f"{size / 1e6:,.0f} MB, {(size - below) / 1e6:,.0f} MB of it on top of the base")

    def look(self) -> None:
        """What is in an image, and what its user may do."""
        for target in TARGETS:
            with self.row(f"`{target}` from the inside") as said:
                words = self.engine.run(self.image(target), "-c", LOOK, flags=("--entrypoint", "python")).splitlines()
                torch, vllm = target != "tools", target == "generator"
                compiler = "/usr/bin/gcc" if vllm or (torch and self.device == "cuda") else None
                assert words[0] == f"10001 {torch} {vllm} False {compiler}", words[0]
                assert len(words) == 6, words
                assert all(line.endswith("Read-only file system") for line in words[1:]), words
                said.append("user 10001, nothing to write to but the mounts, no pip, ")
                said.append(f"{'torch' if torch else 'no torch'}, {'vLLM' if vllm else 'no vLLM'}")
                config = self.engine.inspect(self.image(target))
                assert config["Config"]["User"] == "10001:10001"
                assert config["Config"]["Labels"]["org.opencontainers.image.title"] == f"headrace/{target}"
                history = self.engine.call("history", "--no-trunc", self.image(target)).stdout
                assert "password" not in history.lower()

    def check(self, recipe: Path) -> None:
        """The entry points without anything else."""
        mounted = ("-v", f"{recipe}:{RECIPE}:ro")
        for target in ("learner", "generator"):
            with self.row(f"`{target} --check`") as said:
                resolved = json.loads(self.engine.run(self.image(target), RECIPE, "--check", flags=mounted))
                assert resolved["run"]["directory"] == "/data/runs"
                said.append("prints the recipe as resolved")
        with self.row("exporter without Redis") as said:
            words = self.engine.words(self.image("tools"), flags=("--rm", "--network", "none", *mounted))
            done = self.engine.call("run", *words, check=False)
            assert done.returncode == 2, done.stderr
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("headrace: ")]
            said.append(f"status 2: `{line}`")

    def run(self, recipe: Path, secrets: Path) -> None:
        """A whole run, its generators with vLLM: one is drained in the middle, another takes over."""
        mounts = ("-v", f"{recipe}:{RECIPE}:ro", "-v", f"{secrets}:{SECRETS}:ro")
        broker = ["broker.embedded", "--port", "6379", "--folder", "/tmp/redis", "--acl", SECRETS]
        redis = self.engine.start("redis", self.image("tools"), *broker, flags=("--network", "none", *mounts))
        flags = ("--network", f"container:{redis}", *mounts)

        def start(name: str, target: str, role: str, *words: str, **variables: str) -> str:
            given = {"HEADRACE_POLICY__DIRECTORY": "/policy/tiny", **account(role), **variables}
            return self.engine.start(name, self.image(target), *words, flags=flags, **given)

        def healthy(name: str, port: int) -> Callable[[], bool]:
            asked = ["python", "-m", "monitoring.healthz", str(port)]
            return lambda: self.engine.inside(name, *asked).returncode == 0

        wait_until(lambda: self.engine.log(redis), "Redis answers", 60)
        with self.row("learner, exporter and a generator start") as said:
            learner = start("learner", "learner", "learner")
            exporter = start("exporter", "tools", "monitor")
            first = start("generator-1", "generator", "generator", **VLLM)
            for name, port in ((exporter, 9401), (learner, 9400), (first, 9410)):
                wait_until(healthy(name, port), f"{name} is well", 300)
            said.append("healthy by the check of their images")
        with self.row("the generator samples with vLLM, and is drained") as said:
            wait_until(lambda: trained(self.engine, learner) >= 2, "two steps are trained", 300)
            self.engine.call("stop", "-t", "60", first)
            assert self.engine.inspect(first, "container")["State"]["ExitCode"] == 0, self.engine.log(first)[-3000:]
            said.append("status 0 on SIGTERM")
        with self.row("another generator takes over, the run ends") as said:
            second = start("generator-2", "generator", "generator", **VLLM)
            assert self.engine.wait(learner, 600) == 0, self.engine.log(learner)[-3000:]
            assert self.engine.wait(second, 120) == 0, self.engine.log(second)[-3000:]
            said.append(f"{trained(self.engine, learner)} steps, status 0 of both")
        with self.row("the books of the run") as said:
            words = ["python", "-m", "monitoring.books", RECIPE]
            books = self.engine.inside(exporter, *words)
            assert books.returncode == 0, books.stdout + books.stderr
            said.append(f"`{' '.join(books.stdout.splitlines()[0].split())}`")


def account(role: str) -> dict[str, str]:
    """Who a container is to Redis."""
    url = f"redis://{role}@127.0.0.1:6379"
    return {"HEADRACE_BROKER__URL": url, "HEADRACE_BROKER__PASSWORD_FILE": f"{SECRETS}/{role}.password"}


def trained(engine: Engine, learner: str) -> int:
    """Steps of which the learner has spoken."""
    return sum('"event": "step"' in line for line in engine.log(learner).splitlines())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="headrace images-test", description="build the images, run them, say how it went"
    )
    parser.add_argument("--engine", default="docker", help="what begins each call: docker, podman with its options")
    parser.add_argument("--build-flags", default="", help="for each build")
    parser.add_argument("--run-flags", default="", help="for each container")
    parser.add_argument("--base", default="", help="base image, or stand-in; unset: the Dockerfile's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("build", "look", "check", "run"), help="one part, and no table")
    options = parser.parse_args()
    engine = Engine(*(shlex.split(words) for words in (options.engine, options.build_flags, options.run_flags)))
    base = options.base or Dockerfile.parse(FILE.read_text()).arguments["BASE"]
    with engine, tempfile.TemporaryDirectory() as name:
        examination = Examination(engine, stand_in(engine) if base == "stand-in" else base, options.device)
        recipe = Path(name, "recipe.toml")
        recipe.write_text((ROOT / "recipes" / "tiny.toml").read_text().replace("steps = 4", "steps = 8"))
        secrets = Path(name, "secrets")
        acl.write(secrets, environ={})
        for path in (Path(name), secrets, *secrets.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)  # they are read by the containers' user
        parts: dict[str, Callable[[], None]] = {
            "build": examination.build,
            "look": examination.look,
            "check": lambda: examination.check(recipe),
            "run": lambda: examination.run(recipe, secrets),
        }
        for part in [options.only] if options.only else parts:
            parts[part]()
    if not options.only:
        TABLE.write_text(table(examination, options.base))
        print(f"{TABLE.relative_to(ROOT)} is written")


def table(examination: Examination, base: str) -> str:
    """The page."""
    engine = examination.engine.call("--version").stdout.strip()
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {engine}"
    below = examination.engine.inspect(examination.base)["Size"]
    said = (
        f"a stand-in made of Debian's packages, Python {platform.python_version_tuple()[0]}, {below / 1e6:,.0f} MB"
        if base == "stand-in"
        else f"`{examination.base}`, {below / 1e6:,.0f} MB"
    )
    return "\n".join(
        [
            "# The images",
            "",
            f"`make images-test`, {datetime.date.today()}, {where}.",
            f"DEVICE={examination.device}; the base image is {said}.",
            *INTRODUCTION,
            "| what | outcome | seconds |",
            "|---|---|---|",
            *examination.rows,
            "",
        ]
    )


INTRODUCTION = """
Every container runs as user 10001 on a root file system that is read-only, without capabilities, under
`no-new-privileges` and the engine's seccomp profile, with /data, /models, /policy, /tmp and /dev/shm mounted, as in
`deploy/compose.yaml`. The run is `recipes/tiny.toml` for 8 steps, its generators with vLLM, with users and passwords of
`make acl`; its containers share one loopback interface and no other network. Sizes are uncompressed.
""".splitlines()


if __name__ == "__main__":
    main()
