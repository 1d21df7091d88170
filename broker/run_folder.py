"""What a run leaves on disk, written down in this one place: who writes it, for whom.

Invariant: the names here are the only ones; the launcher, the learner and the views that watch them find each other's
files through this class. Refuses to know what is in them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import tenacity

from broker.errors import Refused
from broker.settings import RunSettings

# Somebody who only asks who the launcher is holds the lock for a moment, too.
_patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(BlockingIOError),
    wait=tenacity.wait_fixed(0.05),
    stop=tenacity.stop_after_attempt(5),
    reraise=True,
)


@dataclass(frozen=True)
class RunFolder:
    """The folder `runs/<name>` of one run."""

    path: Path

    @staticmethod
    def of(run: RunSettings) -> RunFolder:
        """The folder of a run, by its name alone."""
        return RunFolder(run.directory / run.name)

    @property
    def recipe(self) -> Path:
        """The recipe as resolved, TOML (launcher)."""
        return self.path / "recipe.toml"

    @property
    def steps(self) -> Path:
        """One JSON object a line: every step, every evaluation (learner)."""
        return self.path / "steps.jsonl"

    @property
    def summary(self) -> Path:
        """The figures of a run that has ended by itself, JSON (report). Its presence says that the run is over."""
        return self.path / "summary.json"

    @property
    def plot(self) -> Path:
        """The reward over the steps, PNG (report)."""
        return self.path / "reward.png"

    def report(self, kind: str) -> Path:
        """Everything on one page, `html`, and its curves, `png` (report)."""
        return self.path / f"report.{kind}"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files (`make tensorboard`)."""
        return self.path / "tensorboard"

    @property
    def model(self) -> Path:
        """The final model, Hugging Face layout (learner)."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Durable checkpoints (learner)."""
        return self.path / "checkpoints"

    @property
    def redis(self) -> Path:
        """Data of the embedded server (launcher)."""
        return self.path / "redis"

    @property
    def phase(self) -> Path:
        """What the launcher is doing, one line of text; first written when the run begins (launcher)."""
        return self.path / "phase"

    @property
    def generators(self) -> Path:
        """How many generators there are to be, a number (launcher at its start, then `make scale`)."""
        return self.path / "generators"

    @property
    def pid(self) -> Path:
        """Process id of the launcher, locked while it works (launcher)."""
        return self.path / "launcher.pid"

    def log(self, process: str) -> Path:
        """What a process says (launcher; of itself where it has no terminal)."""
        return self.path / "logs" / f"{process}.log"

    @property
    def finished(self) -> bool:
        """The run has ended by itself."""
        return self.summary.exists()

    def make(self) -> None:
        """Make sure that it is there. Raises `Refused` where it cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise Refused(
                f"cannot write to {self.path}: {error.strerror}", "set run.directory to another one"
            ) from None

    def hold(self) -> TextIO | None:
        """Make this process the folder's launcher for as long as the file stays open; None if there is another one."""
        self.make()
        file = self.pid.open("a+")
        try:
            _patiently(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        sign(file)
        return file

    def launcher(self) -> int | None:
        """Process id of the launcher that works on this folder, None if there is none: its lock ends with it."""
        try:
            with self.pid.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self.pid.read_text() or 0)
        return None


def sign(hold: TextIO) -> None:
    """Make this process the launcher of a folder that one of its parents has taken hold of."""
    hold.truncate(0)
    hold.write(str(os.getpid()))
    hold.flush()


def successors(run: RunSettings) -> list[RunSettings]:
    """The run and those that came after it under its name (`demo`, `demo-2`, …), up to the first free name."""
    found = [run]
    while RunFolder.of(found[-1]).path.exists():
        found.append(run.model_copy(update={"name": f"{run.name}-{len(found) + 1}"}))
    return found


def current(run: RunSettings) -> RunSettings:
    """The one that goes on under this name: the newest that is on disk, else the run itself."""
    return successors(run)[-2:][0]


def unfinished(run: RunSettings) -> RunSettings:
    """The one to start or to resume: the first that has not ended by itself."""
    return next(one for one in successors(run) if not RunFolder.of(one).finished)
