"""Children that do not outlive us.

Invariant: on Linux a command wrapped by `with_parent` gets its signal when the thread that started it ends, however
that happens, SIGKILL of the whole process included. Refuses to know what the command does. Elsewhere the kernel cannot
be asked for this: a killed parent leaves its children behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_EXEC = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))  # PR_SET_PDEATHSIG survives the exec below
if os.getppid() != int(sys.argv[2]):
    sys.exit("the parent ended first")
os.execv(sys.argv[3], sys.argv[3:])
"""


def with_parent(command: Sequence[str], death: signal.Signals = signal.SIGTERM) -> list[str]:
    """`command` (absolute path, arguments) for Popen, such that its process gets `death` when we end.

    Goes through a fresh interpreter (20 ms): safe under a parent with threads, where a `preexec_fn` may deadlock.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _EXEC, str(int(death)), str(os.getpid()), *command]


def die_with_parent(death: signal.Signals = signal.SIGTERM) -> None:
    """The same for this process, which somebody else has started: whoever that is, we do not outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(death))
