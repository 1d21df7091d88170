"""Keeps an engine going: one that has died is stopped and started again, each time after a longer pause.

Invariant: between `failed` and the end of the next start nobody samples (`ready` is not set), and an engine that keeps
dying ends its generator with the last error. Refuses to know tickets, and what a healthy engine does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from producer.engine import Engine

MAX_FAILURES = 5  # in a row: deaths without an answer between them, or answers that failed on a live engine
LONGEST_PAUSE = 30.0  # seconds

log = structlog.get_logger("generator")


class EngineKeeper:
    """Of one engine, which somebody else has started for the first time."""

    def __init__(
        self,
        engine: Engine,
        pause: Callable[[float], Awaitable[object]],
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """`pause` waits that many seconds, or less when the generator is `leaving`."""
        self._engine, self._pause, self._leaving = engine, pause, leaving
        self._died = asyncio.Event()
        self.failures = 0
        self.restarts = 0

    @property
    def ready(self) -> bool:
        """The engine may be given something to sample."""
        return not self._died.is_set()

    def answered(self) -> None:
        """A group was sampled: whatever went wrong before is over."""
        self.failures = 0

    def failed(self, error: Exception, *, hung: bool = False) -> None:
        """Sampling or a refresh has failed with `error`. Raises it when that has happened too often in a row."""
        if not self.ready:
            return  # every request of a dead engine fails: that is one death
        self.failures += 1
        if self.failures > MAX_FAILURES:
            raise error
        if hung or not self._engine.alive:
            log.warning("the engine has died and is started again", error=str(error)[:300], in_a_row=self.failures)
            self._died.set()

    async def run(self, started: Callable[[], Awaitable[None]]) -> None:
        """Start it again whenever it has died, then call `started`; for ever. Raises when no start succeeds."""
        while True:
            await self._died.wait()
            await self._pause(min(LONGEST_PAUSE, 2.0 ** (self.failures - 1)))
            if self._leaving():
                await asyncio.Event().wait()  # until we are cancelled: nobody needs an engine any more
            began = time.perf_counter()
            try:
                await self._engine.stop()
                await self._engine.start()
            except Exception as error:  # its memory may not be free yet, for one
                self._again(error)
                continue
            self.restarts += 1
            self._died.clear()
            log.info("the engine is up again", seconds=round(time.perf_counter() - began, 1))
            await started()

    def _again(self, error: Exception) -> None:
        self.failures += 1
        log.warning("the engine could not be started", error=str(error)[:300], in_a_row=self.failures)
        if self.failures > MAX_FAILURES:
            raise RuntimeError(f"the engine could not be started {MAX_FAILURES} times in a row") from error
