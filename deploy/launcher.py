"""The local launcher behind `make demo`: starts all processes in order, keeps them alive, stops them in order.

Invariant: nothing that it started outlives it, and a start that is refused leaves nothing half-started.
Refuses to know what flows between the processes.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from broker.cli import guarded
from broker.connection import connect, require
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.run_folder import RunFolder, current, sign
from broker.scale import want, wanted
from broker.settings import environment
from deploy.background import in_background
from deploy.children import REFUSAL, REFUSED, Child
from deploy.claim import claimed, stop
from deploy.cores import sharing
from deploy.disk import require_disk
from deploy.generators import Generators
from deploy.model import with_model
from deploy.ranks import learner
from deploy.recipe import Recipe, leave_word, read

POLL_SECONDS = 0.2
OTHER_STOP_SECONDS = 1.0  # the learner and the onlookers have nothing to hand back
USUAL = Path("recipes/demo.toml")  # what `make` takes where nobody names a recipe
PYTHON_MODULE = [sys.executable, "-m"]


class Stopped(Exception):
    """Somebody asked us to stop."""


class Launcher:
    """One run on this machine."""

    reporter = "monitoring.report"  # says in the end what came of it

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.environment = sharing(environment(recipe.broker))
        self.folder = RunFolder.of(recipe.run)
        self.server: EmbeddedServer | None = None
        self.generators = Generators(self._generator, recipe.generator.drain_seconds)
        self.learner: Child | None = None
        self.view: Child | None = None
        self.exporter: Child | None = None

    def run(self, started: Callable[[], None]) -> None:
        """Start everything and say so, wait for the learner's end, stop everything, report.

        Raises `Refused`, `Stopped`.
        """
        began = time.monotonic()
        want(self.folder, self.recipe.generator.count)  # `make scale` counts from here on
        try:
            self._prepare()
            self._start()
            started()
            self._watch()
            self.stop("finished")
        finally:
            self.stop()
        print(f"\n{self.folder.path} took {(time.monotonic() - began) / 60:.1f} minutes\n", flush=True)
        done = subprocess.run([*PYTHON_MODULE, self.reporter, str(self.folder.path)], env=self.environment)
        if done.returncode != 0:
            raise SystemExit(done.returncode)  # it said why in one line

    def stop(self, phase: str = "stopping") -> None:
        """Generators first (they hand back tickets), then the learner, the onlookers, and Redis last. Idempotent."""
        if not any((self.server, self.learner, self.view)):
            return
        self._phase(phase)
        self.generators.stop()
        for other in (self.learner, self.exporter, self.view):
            if other is not None:
                other.ask_to_stop()
                other.stop(OTHER_STOP_SECONDS)
        if self.server is not None:
            self.server.stop()
        self.learner, self.exporter, self.view, self.server = None, None, None, None

    def _phase(self, text: str) -> None:
        self.folder.phase.write_text(text)

    def _prepare(self) -> None:
        if self.recipe.broker.url is not None:  # one that is not there is said now, not when torch has been imported
            self._phase("looking for Redis")
            with connect(self.recipe.broker, self.recipe.broker.url) as client:
                require(client)
        self._phase("preparing the model")
        self.recipe = with_model(self.recipe)
        require_disk(self.folder.path, self.recipe)

    def _start(self) -> None:
        self._phase("starting Redis")
        if self.recipe.broker.url is None:
            self.server = EmbeddedServer(self.folder.redis, password=self.recipe.broker.secret).start()
            broker = self.recipe.broker.model_copy(update={"url": self.server.url})
            self.recipe = self.recipe.model_copy(update={"broker": broker})
        leave_word(self.recipe)
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
        self._scale()

    def learner_command(self) -> list[str]:
        """What starts the learner; its recipe comes after it."""
        return [sys.executable, *learner(self.recipe)]

    def _generator(self, number: int) -> Child:
        flags = ["--monitoring.generator_port", str(self.recipe.monitoring.port_of(number))]
        command = [*PYTHON_MODULE, "producer", str(self.folder.recipe), *flags]
        return Child(f"generator {number}", command, self.folder.log(f"generator-{number}"), self.environment)

    def _watch(self) -> None:
        """Until the learner ends well; dead children are revived with back-off, Redis included."""
        assert self.learner is not None
        while self.learner.status != 0:
            self._revive(self.learner)
            self._scale()
            for number, generator in list(self.generators.serving.items()):
                if generator.status != 0:  # else it saw the end of the run, or was told to leave
                    self._tend(number, generator)
            if self.exporter is not None and self.exporter.status not in (0, REFUSED):
                self.exporter.revive()  # a run goes on without it, for whatever reason that is
            if self.server is not None:
                self.server.revive()
            time.sleep(POLL_SECONDS)

    def _scale(self) -> None:
        """As many generators as `make scale` says."""
        count = wanted(self.folder)
        if count is not None:  # else somebody has laid hands on the file: all stays as it is
            self.generators.be(count)

    def _tend(self, number: int, generator: Child) -> None:
        """One that the recipe asks for and that cannot live ends the run; one that was added to it does not."""
        try:
            self._revive(generator)
        except Refused as refusal:
            if number < self.recipe.generator.count:
                raise
            want(self.folder, number)
            print(f"{REFUSAL}{refusal}; generators from now on: {number}", file=sys.stderr, flush=True)

    def _revive(self, child: Child) -> None:
        """Start it again if it has died. Raises `Refused` where that would be in vain."""
        if child.refused:
            raise Refused(child.last_words().removeprefix(REFUSAL) or f"{child.name} refused to start")
        if not child.revive():
            words = f"its last words: {child.last_words()}"
            raise Refused(f"{child.name} dies again and again", f"{words}; see {child.log}")


def _on_signal(_: int, __: FrameType | None) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)  # stopping takes seconds: a second Ctrl-C must not break it off
    raise Stopped


def launch(recipe: Recipe, kind: type[Launcher] = Launcher, detached: bool = False) -> None:
    """One run from its claim to its end, or to a signal; `detached`: to its start, and it goes on in the background.

    Raises `Refused`, `SystemExit`.
    """
    recipe, hold = claimed(recipe)
    folder = RunFolder.of(recipe.run)
    folder.log("").parent.mkdir(exist_ok=True)

    def begin(started: Callable[[], None]) -> None:
        sign(hold)
        signal.signal(signal.SIGTERM, _on_signal)
        signal.signal(signal.SIGINT, _on_signal)
        try:
            kind(recipe).run(started)
        except Stopped:
            print(f"\nstopped; the same command goes on with {folder.path}", flush=True)
            raise SystemExit(130) from None

    with hold:
        if detached:
            in_background(begin, folder.log("launcher"))
        else:
            begin(lambda: None)


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="headrace", description="run a whole recipe on this machine")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--check", action="store_true", help="validate, print the resolved recipe, start nothing")
    parser.add_argument("--detach", action="store_true", help="start it and come back; it goes on in the background")
    parser.add_argument("--stop", action="store_true", help="stop the run of this recipe")
    options, flags = parser.parse_known_args()
    recipe = read(options.recipe, flags)
    if options.check:
        print(recipe.toml(), end="")
    elif options.stop:
        stop(recipe)
    else:
        launch(recipe, detached=options.detach)
        if options.detach:
            _say_how(options.recipe, recipe)


def _say_how(path: Path, recipe: Recipe) -> None:
    """To look, and to end."""
    run, of = current(recipe.run).name, "" if path == USUAL else f" RECIPE={path}"
    print(f"{run} has been started and goes on in the background")
    print(f"  make top{of} shows it, make logs{of} what its processes say")
    print(f"  make report RUN={run} sums it up, make down{of} ends it")


if __name__ == "__main__":
    main()
