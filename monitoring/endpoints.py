"""What running processes say of themselves: `/healthz` and `/metrics`, asked again and again on a thread.

Invariant: whoever draws never waits for an answer; what it is given is the last answer and how long ago that was.
Refuses to know which run the processes belong to, and what their figures mean.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from broker.documents import read_object
from broker.errors import Malformed
from monitoring.rounds import Rounds

EVERY_SECONDS = 2.0
TIMEOUT_SECONDS = 1.5
LONGEST = 8 << 20  # bytes of an answer; ours have some thousand
WINDOW_SECONDS = 60.0  # a rate is taken over this long: groups arrive in lumps


@dataclass(frozen=True)
class Answer:
    """What a process said at `at`; `since` and `progressed` are times of the same clock (seconds since the epoch).

    It waits for `reason` since then, or for nothing (`none`); None where it does not say since when.
    """

    at: float
    reason: str
    detail: str
    since: float | None
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
        health, metrics = _get(connection, "/healthz"), _get(connection, "/metrics")
        return decode(health, metrics, clock())
    except (OSError, HTTPException, Malformed):  # down, busy, or somebody else's server
        return None
    finally:
        connection.close()


def decode(health: bytes, metrics: bytes, now: float) -> Answer:
    """What a process said at `now`. Raises `Malformed`."""
    said = read_object(health)
    waiting, progressed = said.get("waiting"), said.get("last_progress_seconds")
    if not isinstance(waiting, dict):
        raise Malformed("waiting")
    reason, detail, since = (waiting.get(name) for name in ("reason", "detail", "since_seconds"))
    if not (isinstance(reason, str) and isinstance(detail, str)):
        raise Malformed("reason or detail")
    times = (now - _seconds(since), now - _seconds(progressed))
    return Answer(now, reason, detail, *times, _figures(metrics), healthy=said.get("healthy") is True)


def _get(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    body = connection.getresponse().read(LONGEST + 1)
    if len(body) > LONGEST:
        raise Malformed("an endless answer")
    return body


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e12:
        raise Malformed("since_seconds or last_progress_seconds")
    return float(value)


def _figures(metrics: bytes) -> dict[str, float]:
    total: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(metrics.decode()):
            for sample in family.samples:
                total[sample.name] = total.get(sample.name, 0.0) + sample.value
    except (ValueError, IndexError, KeyError) as error:  # what the parser raises where it finds something else
        raise Malformed(f"not metrics ({type(error).__name__})") from None
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


class Endpoints(Rounds):
    """All processes of a run, asked in turn."""

    title, pause = "endpoints", EVERY_SECONDS

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        super().__init__()
        self.all = [endpoint for endpoint in endpoints if endpoint.port]
        self.rounds = 0

    def _round(self) -> None:
        for endpoint in self.all:
            endpoint.ask()
        self.rounds += 1
