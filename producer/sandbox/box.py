"""The sandbox as its user sees it: a program and arguments in, a line for each call out, within a given time.

Invariant: when `run` returns or raises, the candidate is dead and reaped, and a candidate that was not locked was not
run. Refuses to know what a line should have said.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from producer.sandbox.nursery import MESSAGE, READY
from producer.sandbox.runner import LOCKED, encode
from producer.sandbox.syscalls import MACHINES

ROOT = Path(__file__).parents[2]
LAUNCH_SECONDS = 60.0
MOST_BYTES = 1 << 20  # of all lines of a candidate together
BOOT = "import sys; sys.path.append(sys.argv[1]); from producer.sandbox.nursery import main; sys.path.pop(); main()"
# As -I, but for the one variable that we set ourselves: sets then have one order, and a program one verdict.
COMMAND = (sys.executable, "-P", "-s", "-S", "-c", BOOT, str(ROOT))
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
PROBE = "def probe():\n    return open('/dev/null')"


class Unavailable(RuntimeError):
    """Candidates cannot be locked here, or the sandbox has broken down; the text says why. No candidate is to blame."""


class Sandbox:
    """A nursery, started when it is needed, and its candidates, one at a time."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._close: weakref.finalize[..., Sandbox] | None = None

    def run(self, code: str, entry: str, arguments: Sequence[str], seconds: float) -> list[str]:
        """The lines that the candidate has said within `seconds`, whole ones only; none if it said too much.

        Raises `Unavailable`.
        """
        control = self._control or self._launch()
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    socket.send_fds(control, [READY], [theirs.fileno()])
                try:
                    heard = _exchange(ours, encode(code, entry, arguments, seconds), seconds)
                finally:
                    control.send(READY)
                    if control.recv(MESSAGE) != READY:
                        raise ConnectionResetError
            except OSError as error:
                self.close()
                raise Unavailable(f"the sandbox has broken down ({type(error).__name__})") from None
        first, *lines = heard.decode("ascii", "replace").split("\n")
        if first != LOCKED:
            raise Unavailable(f"the candidate was not locked up ({first[:200] or 'it said nothing'})")
        return lines[:-1] if len(heard) <= MOST_BYTES else []

    def close(self) -> None:
        """End the nursery, if there is one; the next `run` starts another."""
        if self._close is not None:
            self._close()
        self._control = self._close = None

    def _launch(self) -> socket.socket:
        if sys.platform != "linux" or platform.machine() not in MACHINES:
            raise Unavailable(f"{sys.platform} on {platform.machine()} has no filter that we know")
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*COMMAND, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
            )
        self._close = weakref.finalize(self, _ended, process, ours)
        ours.settimeout(LAUNCH_SECONDS)
        greeting = b""
        with contextlib.suppress(OSError):
            greeting = ours.recv(MESSAGE)
        if greeting != READY:
            self.close()
            raise Unavailable(greeting.decode("utf-8", "replace") or "the sandbox's process died")
        self._control = ours
        return ours


def require() -> None:
    """See that a candidate can be run here and cannot open a file. Raises `Unavailable`."""
    sandbox = Sandbox()
    try:
        lines = sandbox.run(PROBE, "probe", ["()"], LAUNCH_SECONDS)
    finally:
        sandbox.close()
    if lines != ["! PermissionError"]:
        raise Unavailable(f"a candidate that opens a file is not refused ({lines})")


def _ended(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()  # its candidate dies with it
    process.wait()


def _exchange(channel: socket.socket, request: bytes, seconds: float) -> bytes:
    """Send the request, and hear until the other end closes, it is time, or it is too much.

    The time begins when the candidate is locked up: what a busy machine takes to get there is not its fault.
    """
    heard = bytearray()
    with contextlib.suppress(TimeoutError, ConnectionError):  # hung, or died: what was heard by then counts
        channel.settimeout(LAUNCH_SECONDS)
        channel.sendall(request)
        channel.shutdown(socket.SHUT_WR)
        heard += channel.recv(1 << 16)
        until = time.monotonic() + seconds
        while len(heard) <= MOST_BYTES and (left := until - time.monotonic()) > 0:  # however much trickles in
            channel.settimeout(left)
            if not (part := channel.recv(1 << 16)):
                break
            heard += part
    return bytes(heard)
