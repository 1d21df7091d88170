"""Waiting for an answer of something that may die without a word.

Invariant: the wait ends with the answer, the caller's own deadline, or within moments of the other's death.
Refuses to know who answers and how death shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_SECONDS = 0.5


async def while_alive(work: Awaitable[T], alive: Callable[[], bool]) -> T:
    """What `work` returns. Raises `RuntimeError` if `alive` ceases to hold before."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_SECONDS)
            if not task.done() and not alive():
                raise RuntimeError("it died before it answered")
        return task.result()
    finally:
        task.cancel()
