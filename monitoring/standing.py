"""Where a process stands: what it waits for since when, and when it last got anywhere.

Invariant: it waits for one thing at a time, a Redis that does not answer before any other; times are of one clock that
is handed in. Refuses to know how any of this is shown, and what the process does.

Progress is something done: a step, a group received or published, a ticket claimed, a version taken up, a checkpoint
made durable; of an idle generator, a look for tickets that Redis answered. A process without any for `stall_seconds`
(0: never mind) is not healthy, whatever it waits for: somebody has to look, though not every such wait (`no live
generator`) is cured by a restart.

Ready is another thing: a generator that has loaded a policy, a learner that takes groups. Nobody restarts what is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WAITING = (
    "none",
    "model",  # start-up: it is being loaded
    "engine",  # start-up: vLLM takes a minute or more
    "learner",  # start-up: a generator that was there first
    "task card",  # start-up: a learner that was there first
    "batch",
    "ticket",
    "version",
    "no live generator",
    "publish",
    "replay",
    "evaluation",
    "checkpoint",
    "Redis",
)


@dataclass(frozen=True)
class Wait:
    """What a process waits for, since when on its own clock."""

    reason: str
    detail: str
    since: float


class Standing:
    """Of one process."""

    role = ""

    def __init__(self, *, stall_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.stall_seconds, self._clock = stall_seconds, clock
        self._progress = clock()
        self._wait = Wait("none", "", self._progress)  # replaced whole: other threads read it
        self._ready: Callable[[], bool] = lambda: False
        self._without_redis, self._missed_since, self._lock = 0, 0.0, threading.Lock()

    def _show_wait(self, reason: str, *, waits: bool) -> None:
        """Show that it waits, or no longer waits, for that."""

    def waiting(self, reason: str, detail: str = "") -> None:
        """Say what the process waits for, one of `WAITING`; `detail` (a ticket) shows in `/healthz` and log alone."""
        before = self._wait
        if (reason, detail) == (before.reason, before.detail):
            return
        self._show_wait(before.reason, waits=False)
        self._show_wait(reason, waits=True)
        self._wait = Wait(reason, detail, self._clock())

    @property
    def wait(self) -> Wait:
        """What it waits for now; a Redis that does not answer comes before any other reason."""
        return Wait("Redis", "", self._missed_since) if self._without_redis else self._wait

    def starting(self, reason: str) -> None:
        """A phase of the start begins, and so the one before it is done."""
        self.progress()
        self.waiting(reason)

    def redis_missed(self, missed: bool) -> None:
        """A thread begins, or ceases, to wait for a Redis that does not answer."""
        with self._lock:
            self._without_redis += 1 if missed else -1
            self._show_wait("Redis", waits=self._without_redis > 0)
            if self._without_redis == 1 and missed:
                self._missed_since = self._clock()

    def progress(self) -> None:
        """Something was done."""
        self._progress = self._clock()

    def ready_when(self, holds: Callable[[], bool]) -> None:
        """The start is over, and from now on the process does its work while that holds; asked from any thread."""
        self._ready = holds

    @property
    def waited(self) -> float:
        """Seconds that the present wait has lasted; 0 without one."""
        wait = self.wait
        return 0.0 if wait.reason == "none" else self._clock() - wait.since

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""
        return self._clock() - self._progress

    @property
    def stalled(self) -> bool:
        """No progress for longer than the recipe allows."""
        return 0.0 < self.stall_seconds <= self.idle

    def health(self) -> dict[str, Any]:
        """For `/healthz` and `/readyz`."""
        wait = self.wait
        since = round(self._clock() - wait.since, 1)
        return {
            "role": self.role,
            "healthy": not self.stalled,
            "ready": self._ready(),
            "waiting": {"reason": wait.reason, "detail": wait.detail, "since_seconds": since},
            "last_progress_seconds": round(self.idle, 1),
        }
