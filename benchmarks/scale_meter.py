"""CPU time, ours and a server's, of what is to be counted and of nothing else.

Invariant: what happens while it is paused is in neither figure. Refuses to know what is counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Of the main thread of a process, to the nanosecond: Linux alone knows."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@dataclass
class Meter:
    """CPU seconds, ours (all threads) and the server's, while it runs."""

    server: int  # its pid
    ours: float = 0.0
    servers: float = 0.0
    _since: tuple[float, float] | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within it."""
        self._start()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it not, if it runs."""
        running = self._since is not None
        if running:
            self._stop()
        try:
            yield
        finally:
            if running:
                self._start()

    def _start(self) -> None:
        servers = cpu_seconds(self.server)
        self._since = (time.process_time(), servers)

    def _stop(self) -> None:
        now = time.process_time()
        assert self._since is not None
        self.ours += now - self._since[0]
        self.servers += cpu_seconds(self.server) - self._since[1]
        self._since = None
