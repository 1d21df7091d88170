"""The watchdog: a thread in each process that says in its log what the process has been waiting for, and since when.

Invariant: a wait that lasts is told once it is too long, again each time it has doubled, and once more when it is over;
so is a process that gets nowhere, whatever it does. Refuses to know what anybody waits for, and to end anything:
whether a restart would help is not for the process itself to say.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import structlog

from monitoring.server import Exposed, serve
from monitoring.settings import MonitoringSettings
from monitoring.standing import Wait

EVERY_SECONDS = 5.0


class Watched(Protocol):
    """What is looked at: what a process waits for, and how long it has done nothing. Times are of one clock."""

    stall_seconds: float

    @property
    def wait(self) -> Wait:
        """What it waits for now."""

    @property
    def waited(self) -> float:
        """Seconds that the present wait has lasted; 0 without one."""

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""


@dataclass
class Alarm:
    """Lasting things: when to speak of one. `first` 0 keeps quiet."""

    first: float
    told: object = None  # what it last spoke of
    due: float = 0.0

    def look(self, what: object, seconds: float) -> Literal["", "lasts", "over"]:
        """`what` has lasted for `seconds` now; anything else is over."""
        if self.told is not None and what != self.told:
            self.told = None
            return "over"
        if self.told is None:
            self.due = self.first
        if not 0.0 < self.due <= seconds:
            return ""
        while self.due <= seconds:  # a suspended machine wakes up far behind: one line is enough
            self.due *= 2
        self.told = what
        return "lasts"


@dataclass
class Watchdog:
    """Looks every few seconds, on a daemon thread, while its context lasts."""

    metrics: Watched
    warn_seconds: float
    pause: Callable[[float], bool] | None = None  # waits that long; True when it is to end
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("watchdog"))

    def __post_init__(self) -> None:
        self._ending = threading.Event()
        self._waits, self._stalls = Alarm(self.warn_seconds), Alarm(self.metrics.stall_seconds)
        self._last: tuple[Wait, float] = self.metrics.wait, 0.0

    def look(self) -> None:
        """One look: at most one line about the wait and one about progress."""
        wait, waited, idle = self.metrics.wait, self.metrics.waited, self.metrics.idle
        before, lasted = self._last
        match self._waits.look(wait, waited):
            case "lasts":
                self.log.warning("still waiting", **_named(wait), since_seconds=round(waited, 1))
            case "over":
                self.log.info("the wait is over", **_named(before), lasted_seconds=round(lasted, 1))
        self._last = wait, waited
        match self._stalls.look("stalled" if idle >= self.metrics.stall_seconds else "moving", idle):
            case "lasts":
                self.log.error("no progress", **_named(wait), since_seconds=round(idle, 1))
            case "over":
                self.log.info("progress again", **_named(wait))

    def __enter__(self) -> Self:
        run = contextvars.copy_context().run  # what every line of this process says of itself
        threading.Thread(target=run, args=(self._loop,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()

    def _loop(self) -> None:
        pause = self.pause or self._ending.wait
        while not pause(EVERY_SECONDS):
            self.look()


class Process(Watched, Exposed, Protocol):
    """The metrics of a whole process."""

    def health(self) -> dict[str, Any]:
        """What `/healthz` answers."""


@contextmanager
def watched(metrics: Process, settings: MonitoringSettings, port: int) -> Iterator[None]:
    """While the block runs its metrics are served on `port` and somebody looks. Raises `Refused` for a taken port."""
    server = serve(metrics, settings.host, port, metrics.health)
    try:
        with Watchdog(metrics, settings.warn_seconds):
            yield
    finally:
        server.stop()


def _named(wait: Wait) -> dict[str, str]:
    return {"reason": wait.reason} | ({"detail": wait.detail} if wait.detail else {})
