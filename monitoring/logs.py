"""`python -m monitoring.logs RECIPE`: what the processes of a run say, merged, each line behind its process' name.

Invariant: looking changes nothing; it ends with the run, or at SIGTERM and Ctrl-C, and nothing that a process wrote
does anything to the terminal. Refuses to know what a line means.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from broker.cli import guarded
from broker.embedded import LOG
from broker.errors import Refused
from broker.loading import load
from broker.run_folder import RunFolder
from monitoring.log_tail import LogTail
from monitoring.recipe import ViewRecipe, folder_of
from monitoring.signals import Signals

EVERY_SECONDS = 0.25
LINES = 20
ROLES = ("learner", "generator", "exporter", "redis", "launcher")
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # what colours a line


def logs(folder: RunFolder, role: str) -> Iterator[tuple[str, Path]]:
    """Name and log of each process that has one; of a role, or a single one (`generator-1`), alone if it is named."""
    found = [*sorted(folder.log("").parent.glob("*.log")), folder.redis / LOG]
    for path in found:
        if path.is_file() and (not role or path.stem == role or path.stem.rpartition("-")[0] == role):
            yield path.stem, path


@dataclass
class Printer:
    """Lines to a terminal, in the colour of their process, or to anything else."""

    out: TextIO
    coloured: bool
    _colours: dict[str, int] = field(default_factory=dict)
    _width: int = 0
    _next: Iterator[int] = field(default_factory=lambda: itertools.cycle(COLOURS))

    def line(self, name: str, raw: bytes) -> None:
        """One line of a process."""
        self._width = max(self._width, len(name))
        start = f"{name:<{self._width}} |"
        if self.coloured:
            if name not in self._colours:
                self._colours[name] = next(self._next)
            start = f"\x1b[{self._colours[name]}m{start}\x1b[0m"
        self.out.write(f"{start} {plain(raw)}\n")


def plain(raw: bytes) -> str:
    """As it would stand on a terminal in the end, but harmless: of what a bar has overwritten the last, no colours."""
    text = CONTROL.sub("", raw.decode("utf-8", "replace")).rstrip("\r").rpartition("\r")[2]
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


@dataclass
class Follower:
    """All logs of one run."""

    folder: RunFolder
    printer: Printer
    role: str = ""
    lines: int = LINES
    _tails: dict[str, LogTail] = field(default_factory=dict)

    def follow(self, signals: Signals, on: bool) -> None:
        """Print the last lines, then, with `on`, what is new until the run has ended or we are told to end."""
        lines: int | None = self.lines
        while True:
            going = self.folder.launcher() is not None  # asked first: what its processes said until their end is read
            self._look(lines)
            lines = None  # a process that comes later is told from its beginning
            if not (on and going) or signals.wait(EVERY_SECONDS):
                break
        for name, tail in self._tails.items():
            for line in tail.rest():
                self.printer.line(name, line)
        self.printer.out.flush()

    def _look(self, lines: int | None) -> None:
        for name, path in logs(self.folder, self.role):
            for line in self._tails.setdefault(name, LogTail(path, lines)).read():
                self.printer.line(name, line)
        self.printer.out.flush()


def _known(folder: RunFolder, role: str) -> str:
    """Raises `Refused` for a role that no process has, or will have."""
    names = [name for name, _ in logs(folder, "")]
    if role and role.partition("-")[0] not in ROLES and not any(logs(folder, role)):
        raise Refused(f"no process is called {role!r}", f"ROLE is one of {', '.join(ROLES)}, or {', '.join(names)}")
    return role


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="headrace logs", description="what the processes of a run say")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--role", default="", help=f"{', '.join(ROLES)}, or one process: generator-1")
    parser.add_argument("--lines", type=int, default=LINES, help="so many of each log to begin with")
    parser.add_argument("--no-follow", dest="follow", action="store_false", help="what there is, and no more")
    options, flags = parser.parse_known_args()
    recipe = load(ViewRecipe, options.recipe, flags)
    folder = folder_of(options.recipe, recipe)
    role = _known(folder, options.role)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # what a terminal cannot show
    printer = Printer(sys.stdout, sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    with Signals() as signals:
        try:
            Follower(folder, printer, role, max(0, options.lines)).follow(signals, options.follow)
        except BrokenPipeError:  # `| head` has seen enough; what the interpreter flushes at its end must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
