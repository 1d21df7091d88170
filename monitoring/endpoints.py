"""What running processes say of themselves: `/healthz` and `/metrics`, asked again and again on a thread.

Invariant: whoever draws never waits for an answer; what it is given is the last answer and how long ago that was.
Refuses to know which run the processes belong to, and what their figures mean.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

from prometheus_client.parser import text_string_to_metric_families

EVERY_SECONDS = 2.0
TIMEOUT_SECONDS = 1.5
WINDOW_SECONDS = 60.0  # a rate is taken over this long: groups arrive in lumps


@dataclass(frozen=True)
class Answer:
    """What a process said at `at`; `since` and `progressed` are times of the same clock (seconds since the epoch)."""

    at: float
    reason: str
    detail: str
    since: float
    progressed: float
    figures: dict[str, float]  # name of a sample → sum over its labels
    healthy: bool = True  # by its own account: it has made progress of late

    def figure(self, name: str) -> float:
        """A figure without the `headrace_` before it, 0 where there is none."""
        return self.figures.get(f"headrace_{name}", 0.0)


def ask(host: str, port: int, clock: Callable[[], float] = time.time) -> Answer | None:
    """One process; None if it does not answer, whatever the reason. One that is not healthy answers as well (503)."""
    connection = HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)  # goes past any proxy
    try:
        health = json.loads(_get(connection, "/healthz"))
        figures = _figures(_get(connection, "/metrics"))
        now, waiting = clock(), health["waiting"]
        return Answer(
            at=now,
            reason=waiting["reason"],
            detail=waiting["detail"],
            since=now - waiting["since_seconds"],
            progressed=now - health["last_progress_seconds"],
            figures=figures,
            healthy=health["healthy"] is True,
        )
    except (OSError, HTTPException, ValueError, KeyError, TypeError):  # down, busy, or somebody else's server
        return None
    finally:
        connection.close()


def _get(connection: HTTPConnection, path: str) -> str:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.read().decode()


def _figures(text: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            total[sample.name] = total.get(sample.name, 0.0) + sample.value
    return total


@dataclass
class Rate:
    """How fast a counter grows, over the last minute; one that begins at 0 again begins the minute again."""

    seen: deque[tuple[float, float]] = field(default_factory=deque)
    per_second: float | None = None  # None before it was seen twice

    def add(self, at: float, total: float) -> None:
        """The counter stood at `total`."""
        if self.seen and total < self.seen[-1][1]:
            self.seen.clear()
        self.seen.append((at, total))
        while len(self.seen) > 2 and self.seen[1][0] <= at - WINDOW_SECONDS:
            self.seen.popleft()
        begin, low = self.seen[0]
        self.per_second = (total - low) / (at - begin) if at > begin else None


class Endpoint:
    """One process: its last answer, and the rates of the counters that were named (without `headrace_`)."""

    def __init__(self, host: str, port: int, counters: Sequence[str] = ()) -> None:
        self.host, self.port = host, port
        self.answer: Answer | None = None
        self.rates = {name: Rate() for name in counters}

    def ask(self) -> None:
        """Ask once."""
        answer = ask(self.host, self.port)
        if answer is not None:
            for name, rate in self.rates.items():
                rate.add(answer.at, answer.figure(name))
            self.answer = answer


class Endpoints:
    """All processes of a run, asked in turn on a daemon thread that nobody has to wait for."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.all = [endpoint for endpoint in endpoints if endpoint.port]
        self.rounds = 0
        self._stopping = threading.Event()

    def start(self) -> Endpoints:
        """Begin to ask."""
        threading.Thread(target=self._loop, name="endpoints", daemon=True).start()
        return self

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            for endpoint in self.all:
                endpoint.ask()
            self.rounds += 1
            self._stopping.wait(EVERY_SECONDS)
