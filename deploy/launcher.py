"""The local launcher behind `make demo`: starts all processes in order, keeps them alive, stops them in order.

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
from typing import TextIO

from broker.cli import guarded
from broker.documents import read_object
from broker.embedded import EmbeddedServer
from broker.errors import Malformed, Refused
from broker.run_folder import RunFolder, current, unfinished
from broker.settings import environment
from deploy.children import REFUSAL, REFUSED, Child
from deploy.model import with_model
from deploy.ranks import learner
from deploy.recipe import Recipe, read

POLL_SECONDS = 0.2
GENERATOR_STOP_SECONDS = 6.0
GENERATOR_DRAIN_SECONDS = 2.0  # of these; who stops a run here does not wait for long answers
OTHER_STOP_SECONDS = 1.0  # the learner and the onlookers have nothing to hand back
STOP_SECONDS = 20.0
PYTHON_MODULE = [sys.executable, "-m"]


class Stopped(Exception):
    """Somebody asked us to stop."""


class Launcher:
    """One run on this machine."""

    reporter = "monitoring.report"  # says in the end what came of it

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.environment = environment(recipe.broker)
        self.folder = RunFolder.of(recipe.run)
        self.server: EmbeddedServer | None = None
        self.generators: list[Child] = []
        self.learner: Child | None = None
        self.view: Child | None = None
        self.exporter: Child | None = None

    def run(self) -> None:
        """Start everything, wait for the learner's end, stop everything, report. Raises `Refused`, `Stopped`."""
        started = time.monotonic()
        self.folder.log("").parent.mkdir(exist_ok=True)
        try:
            self._prepare()
            self._start()
            self._watch()
            self.stop("finished")
        finally:
            self.stop()
        print(f"\n{self.folder.path} took {(time.monotonic() - started) / 60:.1f} minutes\n", flush=True)
        done = subprocess.run([*PYTHON_MODULE, self.reporter, str(self.folder.path)], env=self.environment)
        if done.returncode != 0:
            raise SystemExit(done.returncode)  # it said why in one line

    def stop(self, phase: str = "stopping") -> None:
        """Generators first (they hand back tickets), then the learner, the onlookers, and Redis last. Idempotent."""
        if not any((self.server, self.learner, self.view)):
            return
        self._phase(phase)
        for child in self.generators:
            child.ask_to_stop()
        deadline = time.monotonic() + GENERATOR_STOP_SECONDS
        for child in self.generators:
            child.stop(max(0.1, deadline - time.monotonic()))
        for other in (self.learner, self.exporter, self.view):
            if other is not None:
                other.ask_to_stop()
                other.stop(OTHER_STOP_SECONDS)
        if self.server is not None:
            self.server.stop()
        self.generators, self.learner, self.exporter, self.view, self.server = [], None, None, None, None

    def _phase(self, text: str) -> None:
        self.folder.phase.write_text(text)

    def _prepare(self) -> None:
        self._phase("preparing the model")
        self.recipe = with_model(self.recipe)
        _enough_disk(self.folder.path, self.recipe)

    def _start(self) -> None:
        self._phase("starting Redis")
        if self.recipe.broker.url is None:
            self.server = EmbeddedServer(self.folder.redis, password=self.recipe.broker.secret).start()
            broker = self.recipe.broker.model_copy(update={"url": self.server.url})
            self.recipe = self.recipe.model_copy(update={"broker": broker})
        unfinished = self.folder.recipe.with_suffix(".new")
        unfinished.write_text(self.recipe.toml())
        unfinished.rename(self.folder.recipe)  # whoever looks finds a whole one
        self.view = Child("view", [*PYTHON_MODULE, "monitoring.top", str(self.folder.recipe)], None, self.environment)
        self.view.start()
        command = [*self.learner_command(), str(self.folder.recipe)]
        self.learner = Child("learner", command, self.folder.log("learner"), self.environment)
        self.learner.start()
        if self.recipe.monitoring.exporter_port:
            command = [*PYTHON_MODULE, "monitoring.exporter", str(self.folder.recipe)]
            self.exporter = Child("exporter", command, self.folder.log("exporter"), self.environment)
            self.exporter.start()
        self._phase("starting the generators")
        self.generators = [self._generator(i) for i in range(self.recipe.generator.count)]
        for generator in self.generators:
            generator.start()

    def learner_command(self) -> list[str]:
        """What starts the learner; its recipe comes after it."""
        return [sys.executable, *learner(self.recipe)]

    def _generator(self, number: int) -> Child:
        drain = min(self.recipe.generator.drain_seconds, GENERATOR_DRAIN_SECONDS)
        flags = ["--monitoring.generator_port", str(self.recipe.monitoring.port_of(number))]
        flags += ["--generator.drain_seconds", str(drain)]
        command = [*PYTHON_MODULE, "producer", str(self.folder.recipe), *flags]
        return Child(f"generator {number}", command, self.folder.log(f"generator-{number}"), self.environment)

    def _watch(self) -> None:
        """Until the learner ends well; dead children are revived with back-off, Redis included."""
        assert self.learner is not None
        while self.learner.status != 0:
            for child in [self.learner, *self.generators]:
                if child.refused:
                    raise Refused(child.last_words().removeprefix(REFUSAL) or f"{child.name} refused to start")
                if child.status == 0 and child is not self.learner:
                    continue  # it saw the end of the run, or was told to leave
                if not child.revive():
                    words = f"its last words: {child.last_words()}"
                    raise Refused(f"{child.name} dies again and again", f"{words}; see {child.log}")
            if self.exporter is not None and self.exporter.status not in (0, REFUSED):
                self.exporter.revive()  # a run goes on without it, for whatever reason that is
            if self.server is not None:
                self.server.revive()
            time.sleep(POLL_SECONDS)


def _enough_disk(folder: Path, recipe: Recipe) -> None:
    """Refuse a run whose versions and checkpoints cannot fit. Bytes are those of fp32 weights and two Adam moments."""
    weights = sum(path.stat().st_size for path in Path(recipe.run.model).glob("*.safetensors"))
    trained = _trained_share(recipe)
    checkpoints = 3 * (recipe.learner.keep_checkpoints + 1) * trained
    versions = (recipe.policy.keep + 2) / (1 if recipe.policy.dtype == "float32" else 2)
    if recipe.learner.lora_rank and recipe.learner.lora_publish == "adapter":
        versions = (recipe.policy.keep + 2) * trained
    needed = weights * (checkpoints + versions + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refused(
            f"{folder} has {free / 1e6:,.1f} MB free and the run needs about {needed / 1e6:,.1f} MB",
            "free some, or set run.directory to a larger disk",
        )


def _trained_share(recipe: Recipe) -> float:
    """Of the weights, about: an adapter of rank r has r·(O + I) numbers beside the O·I of its layer."""
    try:
        config = read_object((Path(recipe.run.model) / "config.json").read_bytes())
    except (OSError, Malformed):
        return 1.0  # whoever loads the model says what is wrong with it
    width, rank = config.get("hidden_size"), recipe.learner.lora_rank
    return min(1.0, 2 * rank / width) if rank and isinstance(width, int) and width > 0 else 1.0


def _claimed(recipe: Recipe) -> tuple[Recipe, TextIO]:
    """The run to start or to resume, and our hold on its folder; a finished one is left as it is. Raises `Refused`."""
    RunFolder.of(recipe.run).make()
    run = unfinished(recipe.run)
    folder = RunFolder.of(run)
    hold = folder.hold()
    if hold is None:
        raise Refused(f"{folder.path} is being worked on by process {folder.launcher()}", "`make stop` ends it")
    if run is not recipe.run:
        print(f"{RunFolder.of(recipe.run).path} is finished and stays as it is; this run is {folder.path}", flush=True)
    elif folder.steps.exists():
        print(f"going on with {folder.path}", flush=True)
    return recipe.model_copy(update={"run": run}), hold


def _stop_other(recipe: Recipe) -> None:
    folder = RunFolder.of(current(recipe.run))
    pid = folder.launcher()
    if not pid:
        print(f"nothing runs in {folder.path}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while folder.launcher() is not None:
        if time.monotonic() > deadline:
            raise Refused(f"process {pid} has not stopped after {STOP_SECONDS:.0f} s", f"see {folder.log('learner')}")
        time.sleep(POLL_SECONDS)
    print(f"stopped {folder.path}")


def _on_signal(_: int, __: FrameType | None) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)  # stopping takes seconds: a second Ctrl-C must not break it off
    raise Stopped


def launch(recipe: Recipe, kind: type[Launcher] = Launcher) -> None:
    """One run from its claim to its end, or to a signal. Raises `Refused`, `SystemExit`."""
    recipe, hold = _claimed(recipe)
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    with hold:
        try:
            kind(recipe).run()
        except Stopped:
            print(f"\nstopped; the same command goes on with {RunFolder.of(recipe.run).path}", flush=True)
            raise SystemExit(130) from None


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
    launch(recipe)


if __name__ == "__main__":
    main()
