"""Labelled points of a process at which it can be made to die or to fall asleep: how `make crash-matrix` proves things.

Invariant: nothing happens at any of them unless the environment names one: `HEADRACE_POINT=publisher.uploaded:2:KILL`
is the second time that this one is reached. Refuses to know what happens before and after.
"""

from __future__ import annotations

import itertools
import os
import signal
from functools import cache

VARIABLE = "HEADRACE_POINT"


class _Armed:
    def __init__(self, text: str) -> None:
        self.label, times, name = text.split(":")
        self.times, self.signal = int(times), signal.Signals[f"SIG{name}"]
        self.passages = itertools.count(1)


@cache
def _armed() -> _Armed | None:
    return _Armed(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def reached(label: str) -> None:
    """The process is at `label`."""
    armed = _armed()
    if armed is not None and armed.label == label and next(armed.passages) == armed.times:
        os.kill(os.getpid(), armed.signal)
