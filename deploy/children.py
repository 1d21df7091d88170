"""Child processes that are restarted with back-off, stopped in order, and die with the launcher.

Invariant: a child is either running, waiting for its back-off, or over for a reason that `over` names; none outlives
us. Refuses to know what the children do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from broker.child import with_parent

REFUSED = 2  # exit status of a process that cannot be right: not restarted
REFUSAL = "headrace: "  # how the line begins that says why
QUICK_SECONDS = 60.0  # a life shorter than this counts as a failed start
MAX_QUICK_FAILURES = 5
LONGEST_BACKOFF = 30.0
ORPHAN_SECONDS = 1.0  # in which what a killed child had started may leave by itself, and free its shared memory


@dataclass
class Child:
    """One process and its restarts. Without `log` it shares our output, without `env` our environment."""

    name: str
    command: list[str]
    log: Path | None
    env: Mapping[str, str] | None = None
    clock: Callable[[], float] = time.monotonic
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    quick_failures: int = 0
    restarts: int = 0
    due: float = 0.0
    latest: float = 0.0
    log_start: int = 0

    def start(self) -> None:
        """Start it in a session of its own: a Ctrl-C reaches the launcher alone, which then stops all in order."""
        self.started = self.clock()
        output = self.log.open("ab") if self.log else None
        self.log_start = output.tell() if output else 0
        try:
            self.process = subprocess.Popen(
                with_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env=self.env,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self.process.poll() if self.process else None

    @property
    def refused(self) -> bool:
        """It is over because it cannot be right; torchrun makes a 1 of its ranks' exit status."""
        return self.status == REFUSED or (self.status == 1 and self.last_words().startswith(REFUSAL))

    def revive(self) -> bool:
        """Start a dead child again once its back-off is over; False when it has failed too often in a row."""
        now = self.clock()
        if self.status is None:
            return True
        if self.due == 0.0:
            self.quick_failures = self.quick_failures + 1 if now - self.started < QUICK_SECONDS else 1
            if self.quick_failures > MAX_QUICK_FAILURES:
                return False
            self.due = now + min(LONGEST_BACKOFF, 2.0 ** (self.quick_failures - 1))
        if now >= self.due:
            self.due = 0.0
            self.restarts += 1
            self.start()
        return True

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def ask_to_leave(self, seconds: float) -> None:
        """SIGTERM, and `seconds` until it has to be gone."""
        self.ask_to_stop()
        self.latest = self.clock() + seconds

    @property
    def gone(self) -> bool:
        """After `ask_to_leave`: it has ended, and all that it had started. Kills what is late, and never waits."""
        if not self.process:
            return True
        ended = self.status is not None
        if ended:
            self.latest = min(self.latest, self.clock() + ORPHAN_SECONDS)
        try:
            os.killpg(self.process.pid, signal.SIGKILL if self.clock() >= self.latest else 0)
        except (ProcessLookupError, PermissionError):  # nothing of it is left; PermissionError: on macOS, or another's
            return ended
        return False

    def wait(self, seconds: float) -> None:
        """Until it has ended, at most `seconds`."""
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):  # whoever asks sees to that
                self.process.wait(max(0.0, seconds))

    def stop(self, seconds: float) -> None:
        """Wait for the end, at most `seconds`, then kill it and, a second later, what is left of its session."""
        if not self.process:
            return
        self.wait(seconds)
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            deadline = time.monotonic() + ORPHAN_SECONDS
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.05)
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The line with which it refused or crashed in its last life, from its log."""
        if not self.log or not self.log.exists():
            return ""
        lines = self.log.read_bytes()[self.log_start :][-20_000:].decode("utf-8", "replace").splitlines()
        refusals = [line for line in lines if line.startswith(REFUSAL)]
        return (refusals or [line for line in lines if line.strip()] or [""])[-1]
