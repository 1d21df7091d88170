"""Which policy version the engine holds: takes up new ones in flight, and lets tickets wait for theirs.

Invariant: a version is leased before it is opened and checked before it is loaded; where that fails the old weights
serve on, and it is tried again. Refuses to know tickets, and what a version is good for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import redis
import structlog

from broker.errors import Refused
from broker.points import reached
from broker.policy_reader import PolicyReader
from monitoring.metrics import GeneratorMetrics
from producer.engine import Engine, Unsampled
from producer.keeper import EngineKeeper

POINTER_SECONDS = 1.0  # longest wait for a new version in one call
RETRY_SECONDS = 2.0  # after a refresh that failed

log = structlog.get_logger("generator")


class Refresher:
    """Of one generator, `name`, and its engine."""

    def __init__(
        self,
        name: str,
        policy: PolicyReader,
        engine: Engine,
        keeper: EngineKeeper,
        metrics: GeneratorMetrics,
        pause: Callable[[float], Awaitable[object]],
        say: Callable[[], None],
        leaving: Callable[[], bool],
    ) -> None:
        """`say` is called when the engine holds another version; `pause` is over at once when `leaving`."""
        self._name, self._policy, self._engine, self._keeper = name, policy, engine, keeper
        self._metrics, self._pause, self._say, self._leaving = metrics, pause, say, leaving
        self.changed = asyncio.Condition()  # the engine holds another version, has died, or is up again
        self.exact = asyncio.Lock()  # deterministic runs: one ticket, one version at a time

    async def run(self) -> None:
        """Take up every version that the pointer comes to name, until the generator leaves."""
        while not self._leaving():
            if not self._keeper.ready:
                await self._pause(POINTER_SECONDS)
                continue
            newest = await asyncio.to_thread(self._policy.wait, self._engine.policy_version, POINTER_SECONDS)
            if newest is not None and not await self.refresh(newest):
                await self._pause(RETRY_SECONDS)

    async def refresh(self, version: int) -> bool:
        """Take up `version`; False if it could not be had, in which case the old weights go on serving.

        Raises `Refused` where no version of this run can be had.
        """
        started = time.perf_counter()
        try:
            with self._metrics.phase("refresh"):
                await self._take_up(version)
        except (redis.RedisError, Refused):
            raise  # patience is at its end; or the run is another model's, and every version of it will be
        except Exception as error:  # whatever a library raises: counted, and the engine is asked whether it lives
            self._metrics.refresh_failures.inc()
            log.warning("refresh failed, the old weights go on", version=version, error=str(error)[:300])
            if not self._engine.alive:
                self._keeper.failed(error)
                await self.notify()
            return False
        reached("generator.refreshed")
        seconds = time.perf_counter() - started
        self._metrics.progress()
        self._say()
        self._metrics.refresh_seconds.observe(seconds)
        self._metrics.policy_version.set(version)
        log.info("refreshed", version=version, seconds=round(seconds, 3))
        await self.notify()
        return True

    async def _take_up(self, version: int) -> None:
        """Leased before it is opened, a version is not pruned under us. Once loaded, its files are needed no more."""
        await asyncio.to_thread(self._policy.lease, self._name, version)
        reached("generator.leased")
        folder = await asyncio.to_thread(self._policy.open, version)
        reached("generator.opened")
        still = self._engine.still_seconds
        try:
            await self._engine.refresh(folder, version)
        finally:  # one that failed has cost time as well
            if self._engine.still_seconds > still:
                self._metrics.pause_seconds.observe(self._engine.still_seconds - still)
        await asyncio.to_thread(self._policy.loaded, version)

    async def hold(self, version: int) -> None:
        """Wait until the engine holds `version` or newer. Raises `Unsampled` if it dies meanwhile."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._engine.policy_version >= version or not self._keeper.ready)
        self._must_live()

    async def hold_exactly(self, version: int) -> None:
        """Make the engine hold just `version`, under the lock `exact`. Raises `Unsampled` if it dies meanwhile."""
        while self._engine.policy_version != version:
            self._must_live()
            if not await self.refresh(version):
                await self._pause(RETRY_SECONDS)

    async def notify(self) -> None:
        """Let whoever waits look again."""
        async with self.changed:
            self.changed.notify_all()

    def _must_live(self) -> None:
        if not self._keeper.ready:
            raise Unsampled("the engine has died", asked=False)
