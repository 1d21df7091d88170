"""Whether candidates can be locked up here (where not, tests that need it are skipped by name), and what they say."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import psutil
import pytest

from producer.sandbox.box import Sandbox
from producer.sandbox.syscalls import MACHINES

SECONDS = 10.0
GET_SECCOMP = 21  # PR_* of <linux/prctl.h>


def why_not() -> str:
    """'' where the kernel has what it takes; asked of the kernel, so that a lock that does not close is no excuse."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"{sys.platform} on {platform.machine()}"
    mode = ctypes.CDLL(None, use_errno=True).prctl(GET_SECCOMP, 0, 0, 0, 0)
    return "" if mode >= 0 else f"the kernel has no seccomp ({os.strerror(ctypes.get_errno())})"


needs_lock = pytest.mark.skipif(bool(why_not()), reason=f"no candidate can be locked up here: {why_not()}")


def said(sandbox: Sandbox, code: str, *arguments: str, seconds: float = SECONDS) -> list[str]:
    return sandbox.run(code, "f", arguments or ["()"], seconds)


def family() -> set[int]:
    """Every process below us that is alive or not reaped."""
    return {child.pid for child in psutil.Process().children(recursive=True)}
