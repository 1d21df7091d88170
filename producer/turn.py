"""Engines that share a device start one after the other, on one machine.

vLLM finds out how much memory a key-value cache may have from what the whole device has left before and after the model
is loaded. An engine that starts meanwhile is charged for what another one takes, and both come out too small, or fail.

Invariant: of engines whose devices overlap one at a time has its turn; it is over when its process ends, however that
ends. Refuses to know engines.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import structlog

LOOK_SECONDS = 0.2

log = structlog.get_logger("generator")


def devices(count: int, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The first `count` GPUs that this process may see, by what CUDA calls them."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(count)])[:count]


@asynccontextmanager
async def turn(names: Sequence[str], folder: Path | None = None) -> AsyncIterator[None]:
    """Have these devices alone among whoever asks for a turn; `folder` holds the locks, the system's by default."""
    where = Path(tempfile.gettempdir()) if folder is None else folder
    with ExitStack() as held:
        for name in sorted(names):  # everybody in the same order: nobody waits for who waits for him
            path = where / f"headrace-{os.getuid()}-device-{name.strip().replace('/', '-')}.lock"
            file = held.enter_context(path.open("ab"))
            if not _locked(file):
                log.info("another engine is starting on this device", device=name)
                while not _locked(file):
                    await asyncio.sleep(LOOK_SECONDS)
            held.callback(fcntl.flock, file, fcntl.LOCK_UN)  # also for children that were forked meanwhile
        yield


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
