"""`python -m monitoring.top RECIPE`, or `--prometheus URL [--run NAME]` for a run of any machine: watches it, live on a
terminal, as log lines elsewhere, until it ends.

Invariant: ends by itself or at SIGTERM with status 0, the terminal as it was and the last state on it. Refuses to know
how a run is seen (watch, afar) and how it looks (panel, lines).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live

from broker.cli import guarded
from broker.loading import load
from monitoring.afar import Afar, chosen
from monitoring.hearsay import Questions
from monitoring.lines import Lines
from monitoring.panel import panel
from monitoring.prometheus_api import Prometheus
from monitoring.recipe import ViewRecipe, folder_of
from monitoring.sight import Sight
from monitoring.signals import Signals
from monitoring.watch import Watch

EVERY_SECONDS = 1.0
UNDECIDED_SECONDS = 0.05
TIMEOUT_SECONDS = 10.0  # of one question to a Prometheus


class View(Protocol):
    """Where a look goes."""

    def show(self, sight: Sight) -> None:
        """Show it."""


class Screen:
    """Drawn over itself."""

    def __init__(self, live: Live) -> None:
        self._live, self._size = live, live.console.size

    def show(self, sight: Sight) -> None:
        """Draw; a terminal that was resized has wrapped the old rows and is wiped first."""
        if self._live.console.size != self._size:
            self._size = self._live.console.size
            self._live.console.clear()
        self._live.update(panel(sight, *self._size), refresh=True)


class Log:
    """One line under the other."""

    def __init__(self) -> None:
        self._lines = Lines()

    def show(self, sight: Sight) -> None:
        """Print what is new."""
        for line in self._lines.of(sight):
            print(line, flush=True)


@contextmanager
def view() -> Iterator[View]:
    """What suits stdout."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # bars on a terminal that knows no bars
    console = Console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield Log()
        return
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield Screen(live)


def follow(watch: Watch | Afar, view: View, signals: Signals) -> None:
    """Show the run until it ends or we are told to; the last look comes after that, so that nothing goes unsaid."""
    while watch.undecided:
        if signals.wait(UNDECIDED_SECONDS):
            break
    while True:
        sight = watch.look()
        if sight is None:
            return
        view.show(sight)
        if not sight.going:
            return
        if signals.wait(EVERY_SECONDS):
            last = watch.look()
            view.show(last or sight)
            return


def parsed() -> tuple[argparse.Namespace, list[str]]:
    """The command line: a recipe and its flags, or a Prometheus and a run's name."""
    parser = argparse.ArgumentParser(prog="monitoring.top", description="watch a run", allow_abbrev=False)
    parser.add_argument("recipe", type=Path, nargs="?", help="of a run of this machine")
    parser.add_argument("--prometheus", metavar="URL", help="watch what it scrapes, wherever that runs")
    parser.add_argument("--run", help="its name there, if there are several")
    options, flags = parser.parse_known_args()
    if (options.recipe is None) == (options.prometheus is None):
        parser.error("give a recipe, or --prometheus URL")
    if options.prometheus is None and options.run is not None:
        parser.error("--run goes with --prometheus")
    if options.prometheus is not None and flags:
        parser.error(f"unknown: {' '.join(flags)}")
    return options, flags


def watched(options: argparse.Namespace, flags: list[str]) -> Watch | Afar:
    """What the command line names. Raises `Refused`."""
    if options.prometheus is not None:
        url = options.prometheus.rstrip("/")
        prometheus = Prometheus(url if "://" in url else f"http://{url}", TIMEOUT_SECONDS)
        return Afar(Questions(prometheus, chosen(prometheus, options.run)))
    recipe = load(ViewRecipe, options.recipe, flags)
    return Watch(folder_of(options.recipe, recipe), recipe)


@guarded
def main() -> None:
    """Entry point."""
    options, flags = parsed()
    with Signals() as signals:
        watch = watched(options, flags)
        try:
            with view() as shown:
                follow(watch, shown, signals)
        except BrokenPipeError:  # `| head` has seen enough; what the interpreter flushes at its end must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        watch.close()


if __name__ == "__main__":
    main()
