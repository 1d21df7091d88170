"""A run that goes on behind the terminal it was started from.

Invariant: the caller comes back when everything is started, or ends as the start has ended; until then it passes on
what that says. Refuses to know what is started.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

RELAY_SECONDS = 0.1
STARTED = b"1"


def in_background(begin: Callable[[Callable[[], None]], None], log: Path) -> None:
    """Call `begin(started)` in a process of its own that outlives the terminal and speaks into `log`.

    Returns in this process once `started` was called there. Raises `SystemExit` if the other ended before.
    """
    with log.open("ab") as output, log.open("rb") as said:
        said.seek(0, os.SEEK_END)
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            _leave_the_terminal(output)
            begin(lambda: _tell(tell))
            raise SystemExit(0)
        os.close(tell)
        try:
            started = _relay(told, said)
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGTERM)
            started = False
        os.close(told)
        if not started:
            status = os.waitpid(pid, 0)[1]
            _pass_on(said)
            raise SystemExit(os.waitstatus_to_exitcode(status))


def _leave_the_terminal(output: BinaryIO) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)


def _tell(pipe: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever waited for it has gone: the run is started all the same
        os.write(pipe, STARTED)
    os.close(pipe)


def _relay(told: int, said: BinaryIO) -> bool:
    """Whether we were told of the start; False if the other side has gone."""
    while not select.select([told], [], [], RELAY_SECONDS)[0]:
        _pass_on(said)
    return os.read(told, 1) == STARTED


def _pass_on(said: BinaryIO) -> None:
    sys.stderr.buffer.write(said.read())
    sys.stderr.flush()
