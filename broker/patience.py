"""Patience with a Redis that restarts, fails over, stalls or is full.

Invariant: a call made through it ends with its result, with an error that waiting cannot mend, or `seconds` after Redis
was first missed; meanwhile somebody is told. Refuses to know what is called: that it may be called twice is known to
whoever calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog
import tenacity

T = TypeVar("T")

SHORTEST, LONGEST = 0.05, 1.0  # seconds between two attempts
# Said by a server that will be well again, or is no longer the one to ask.
ELSEWHERE = ("READONLY", "MASTERDOWN", "UNBLOCKED")
PASSING = (*ELSEWHERE, "LOADING", "MISCONF", "TRYAGAIN", "OOM", "NOREPLICAS", "BUSY ")

log = structlog.get_logger(__name__)


def passing(error: BaseException) -> bool:
    """Waiting can mend it: the server is away, starts, fails over, or has no room for the moment."""
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return False  # a kind of ConnectionError, and for good
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError):
        return True
    return isinstance(error, redis.ResponseError) and (
        isinstance(error, redis.exceptions.OutOfMemoryError) or str(error).startswith(PASSING)
    )


def elsewhere(error: BaseException) -> bool:
    """The connection leads to a server that has been demoted: a new one may lead to its successor."""
    return isinstance(error, redis.ReadOnlyError) or str(error).startswith(ELSEWHERE)


def _nobody(missed: bool) -> None:
    """Nobody needs to know."""


class Patience:
    """Of one process, for all its connections and threads."""

    def __init__(self, seconds: float, notice: Callable[[bool], None] = _nobody) -> None:
        """`notice` is told True when a call begins to wait for Redis and False when that call waits no longer."""
        self.seconds = seconds
        self.leaving = threading.Event()  # set: who leaves waits for nothing any more
        self.connections = 0  # made so far: each new one may lead to a server that has lost something
        self._notice = notice

    def connected(self) -> None:
        """A connection was made."""
        self.connections += 1

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns, as soon as Redis lets it. Raises its last error when patience is at its end."""
        try:
            return call()
        except redis.RedisError as error:
            if not passing(error) or self.leaving.is_set():
                raise
            log.warning("waiting for redis", error=str(error)[:200])
        self._notice(True)
        try:
            result = self._attempts()(call)
        finally:
            self._notice(False)
        log.info("redis answers again")
        return result

    def _attempts(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(passing),
            wait=tenacity.wait_exponential(SHORTEST, max=LONGEST),
            stop=tenacity.stop_any(tenacity.stop_after_delay(self.seconds), tenacity.stop_when_event_set(self.leaving)),
            sleep=tenacity.sleep_using_event(self.leaving),
            reraise=True,
        )
