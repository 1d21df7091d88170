"""A terminal as a person has it: tmux, with a shell in it, whose screen can be read as text and resized."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.pipeline import wait_until

UNSET = ("TMUX", "TMUX_PANE", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONPATH", "ENV")


@dataclass(frozen=True)
class Terminal:
    """A pane of a tmux server of its own."""

    socket: Path

    def tmux(self, *arguments: str) -> str:
        """One command of tmux."""
        command = ["tmux", "-S", str(self.socket), "-f", "/dev/null", "-u", *arguments]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def screen(self) -> list[str]:
        """The rows, without what is blank at their ends and below."""
        return [row.rstrip() for row in self.tmux("capture-pane", "-p").rstrip().split("\n")]

    @property
    def state(self) -> tuple[str, str]:
        """Whether the cursor shows, and whether the alternate screen does."""
        cursor, alternate = self.tmux("display-message", "-p", "#{cursor_flag} #{alternate_on}").split()
        return cursor, alternate

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self.tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        """As a person does with the window."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def shows(self, *what: str) -> list[str]:
        """Wait until all of it is on the screen, which is returned: one that was not caught while it was drawn."""
        found: list[str] = []

        def look() -> bool:
            before, found[:] = list(found), self.screen
            return before == found and all(word in "\n".join(found) for word in what)

        try:
            wait_until(look, f"{what} on the screen", 30)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *found])) from None
        return list(found)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


@contextmanager
def terminal(folder: Path, columns: int, rows: int) -> Iterator[Terminal]:
    """A shell in `folder`; without tmux the test is skipped."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: `apt install tmux`")
    found = Terminal(folder / "tmux")
    found.tmux(
        "new-session",
        "-d",
        "-x",
        str(columns),
        "-y",
        str(rows),
        "-c",
        str(folder),
        "exec env PS1='$ ' bash --norc --noprofile",
    )
    try:
        found.shows("$")
        yield found
    finally:
        found.tmux("kill-server")
