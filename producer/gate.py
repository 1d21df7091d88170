"""A gate that many may pass at once, and that can be closed behind them.

Invariant: within `closed` nobody is inside, and whoever waits outside gets in when the last `closed` ends, however it
ends.
Refuses to know who passes and why it is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets samples through; `closed` holds new ones back and waits until those inside have left."""

    def __init__(self) -> None:
        """Open and empty."""
        self._inside = self._keepers = 0
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Inside; leaving needs no await, so a cancelled sample cannot fail to leave."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nobody inside."""
        self._keepers += 1
        self._open.clear()
        try:
            await self._idle.wait()
            yield
        finally:
            self._keepers -= 1
            if not self._keepers:
                self._open.set()
