"""`python -m monitoring.top RECIPE`: watches a run, live on a terminal, as log lines elsewhere, until it ends.

Invariant: ends by itself or at SIGTERM with status 0, the terminal as it was and the last state on it. Refuses to know
how a run is seen (watch) and how it looks (panel, lines).
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
from broker.settings import load
from monitoring.lines import Lines
from monitoring.panel import panel
from monitoring.recipe import ViewRecipe, folder_of
from monitoring.sight import Sight
from monitoring.signals import Signals
from monitoring.watch import Watch

EVERY_SECONDS = 1.0
UNDECIDED_SECONDS = 0.05


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


def follow(watch: Watch, view: View, signals: Signals) -> None:
    """Show the run until it ends or we are told to; the last look comes after that, so that nothing goes unsaid."""
    while watch.undecided:
        if signals.wait(UNDECIDED_SECONDS):
            break
    while True:
        sight = watch.look()
        view.show(sight)
        if not sight.going:
            return
        if signals.wait(EVERY_SECONDS):
            view.show(watch.look())
            return


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.top", description="watch a run")
    parser.add_argument("recipe", type=Path)
    options, flags = parser.parse_known_args()
    with Signals() as signals:
        recipe = load(ViewRecipe, options.recipe, flags)
        watch = Watch(folder_of(options.recipe, recipe), recipe)
        try:
            with view() as shown:
                follow(watch, shown, signals)
        except BrokenPipeError:  # `| head` has seen enough; what the interpreter flushes at its end must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        watch.close()


if __name__ == "__main__":
    main()
