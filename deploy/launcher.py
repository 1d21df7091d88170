"""The local launcher behind `make demo`: starts broker, generators and learner in order, keeps them alive, stops them in order.

Invariant: nothing that it started outlives it, and a start that is refused leaves nothing half-started.
Refuses to know what flows between the processes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from broker.cli import guarded
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from deploy.children import REFUSED, Child
from deploy.recipe import Recipe, read

POLL_SECONDS = 0.2
GENERATOR_STOP_SECONDS = 6.0
LEARNER_STOP_SECONDS = 2.0
MODELS = Path("models")


class Stopped(Exception):
    """Somebody asked us to stop."""


class Launcher:
    """One run on this machine."""

    def __init__(self, recipe: Recipe, source: Path) -> None:
        self.recipe, self.source = recipe, source
        self.folder = recipe.run.folder
        self.server: EmbeddedServer | None = None
        self.generators: list[Child] = []
        self.learner: Child | None = None
        self.view: Child | None = None

    def run(self) -> None:
        """Start everything, wait for the learner's end, stop everything, report. Raises `Refused`."""
        started = time.time()
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        (self.folder / "launcher.pid").write_text(str(os.getpid()))
        try:
            self._prepare()
            self._start()
            self._watch()
        except Stopped:
            self.stop()
            print(f"\nstopped; `make demo` goes on with {self.folder}", flush=True)
            raise SystemExit(130) from None
        finally:
            self.stop()
            (self.folder / "launcher.pid").unlink(missing_ok=True)
        print(f"finished in {(time.time() - started) / 60:.1f} minutes; everything is in {self.folder}", flush=True)
        subprocess.run([sys.executable, "-m", "monitoring.report", str(self.folder)], check=True)

    def _phase(self, text: str) -> None:
        (self.folder / "phase").write_text(text)

    def _prepare(self) -> None:
        """Make the model ready in a process of its own, and write the recipe as resolved."""
        self._phase("preparing the model")
        command = [sys.executable, "-m", "deploy.prepare", self.recipe.run.model, "--models", str(MODELS)]
        if self.recipe.run.trust_remote_code:
            command.append("--trust-remote-code")
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if done.returncode != 0:
            raise SystemExit(done.returncode)  # it said why in one line
        model = done.stdout.strip().splitlines()[-1]
        run = self.recipe.run.model_copy(update={"model": str(Path(model).resolve())})
        self.recipe = self.recipe.model_copy(update={"run": run})
        _enough_disk(self.folder, Path(model), self.recipe)

    def _start(self) -> None:
        self._phase("starting the broker")
        if self.recipe.broker.url is None:
            self.server = EmbeddedServer(self.folder / "redis", password=self.recipe.broker.password)
            self.server.start()
            broker = self.recipe.broker.model_copy(update={"url": self.server.url})
            self.recipe = self.recipe.model_copy(update={"broker": broker})
        resolved = self.folder / "recipe.toml"
        resolved.write_text(self.recipe.toml())
        python = [sys.executable, "-m"]
        self.view = Child("view", [*python, "monitoring.top", str(resolved)], None)
        self.view.start()
        self.learner = Child("learner", [*python, "consumer", str(resolved)], self.folder / "logs" / "learner.log")
        self.learner.start()
        self._phase("starting the engine")
        for i in range(self.recipe.generator.count):
            port = self.recipe.monitoring.generator_port
            flags = ["--monitoring.generator_port", str(port + i if port else 0)]
            log = self.folder / "logs" / f"generator-{i}.log"
            self.generators.append(Child(f"generator {i}", [*python, "producer", str(resolved), *flags], log))
            self.generators[-1].start()

    def _watch(self) -> None:
        """Until the learner ends well; dead children are revived with back-off, Redis included."""
        assert self.learner is not None
        while self.learner.status != 0:
            for child in [self.learner, *self.generators]:
                if child.status == REFUSED:
                    raise Refused(child.last_words().removeprefix("headrace: ") or f"{child.name} refused to start")
                if child.status == 0 and child is not self.learner:
                    continue  # it saw the end of the run, or was told to leave
                if not child.revive():
                    raise Refused(f"{child.name} dies again and again", f"its last words: {child.last_words()}; see {child.log}")
            if self.server is not None:
                self.server.revive()
            if self.view is not None and self.view.status not in (None, 0):
                self.view = None  # a broken view does not stop a run
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Generators first (they hand back their tickets), then the learner, the view, and Redis last. Idempotent."""
        for child in self.generators:
            child.ask_to_stop()
        deadline = time.monotonic() + GENERATOR_STOP_SECONDS
        for child in self.generators:
            child.stop(max(0.1, deadline - time.monotonic()))
        for other in (self.learner, self.view):
            if other is not None:
                other.ask_to_stop()
                other.stop(LEARNER_STOP_SECONDS)
        if self.server is not None:
            self.server.stop()
        self.generators, self.learner, self.view, self.server = [], None, None, None


def _enough_disk(folder: Path, model: Path, recipe: Recipe) -> None:
    """Refuse a run whose versions and checkpoints cannot fit."""
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    wide = 1 if recipe.policy.dtype == "float32" else 2
    needed = weights * (3 * (recipe.learner.keep_checkpoints + 1) + (recipe.policy.keep + 2) // wide + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refused(
            f"{folder} has {free / 1e9:.1f} GB free and the run needs about {needed / 1e9:.1f} GB",
            "free some, or set run.directory to a larger disk",
        )


def _next_name(recipe: Recipe) -> Recipe:
    """A finished run is left alone: its successor gets the next free name."""
    if not (recipe.run.folder / "summary.json").exists():
        return recipe
    number = 2
    while (recipe.run.directory / f"{recipe.run.name}-{number}" / "summary.json").exists():
        number += 1
    name = f"{recipe.run.name}-{number}"
    print(f"{recipe.run.folder} is finished and stays as it is; this run is called {name}", flush=True)
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": name})})


def _running(folder: Path) -> int | None:
    """Pid of the launcher that works on this folder, if it lives."""
    try:
        pid = int((folder / "launcher.pid").read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def _stop_other(recipe: Recipe) -> None:
    pid = _running(recipe.run.folder)
    if pid is None:
        print(f"nothing runs in {recipe.run.folder}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while _running(recipe.run.folder) is not None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    print(f"stopped {recipe.run.folder}")


def _on_signal(signum: int, frame: FrameType | None) -> None:
    raise Stopped


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="headrace", description="run a whole recipe on this machine")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--check", action="store_true", help="validate, print the resolved recipe, start nothing")
    parser.add_argument("--stop", action="store_true", help="stop the run of this recipe")
    options, flags = parser.parse_known_args()
    recipe = read(options.recipe, flags)
    if options.check:
        print(recipe.toml(), end="")
        return
    if options.stop:
        _stop_other(recipe)
        return
    recipe = _next_name(recipe)
    other = _running(recipe.run.folder)
    if other is not None:
        raise Refused(f"{recipe.run.folder} is being worked on by process {other}", "`make stop` ends it")
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    Launcher(recipe, options.recipe).run()


if __name__ == "__main__":
    main()
