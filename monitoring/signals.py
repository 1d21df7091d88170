"""SIGTERM and SIGINT as a fact to wait for: what is under way is brought to its end.

Invariant: a signal that came before the wait is not missed by it. Refuses to know what is to end.
"""

from __future__ import annotations

import select
import signal
import socket
from contextlib import AbstractContextManager


class Signals(AbstractContextManager["Signals"]):
    """Of the main thread of a process, while the context lasts."""

    def __enter__(self) -> Signals:
        self.came = False
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno())
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: setattr(self, "came", True))
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()

    def wait(self, seconds: float) -> bool:
        """True as soon as one came, False after `seconds`."""
        if not self.came:
            select.select([self._read], [], [], seconds)
        return self.came
