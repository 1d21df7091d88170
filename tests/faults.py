"""What goes wrong with a Redis and the way to it, made to happen for real.

`Faulty` is a server that is killed, stopped and made to forget; `Proxy` a connection that breaks at a chosen moment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from broker.embedded import EmbeddedServer


class Faulty(EmbeddedServer):
    """A Redis that comes back on the same port, with all of its data, with older data, or with none."""

    _parent: ThreadPoolExecutor | None = None

    def start(self) -> Self:
        """From a thread of its own, which outlives whoever starts it again: its parent is a thread."""
        self._parent = self._parent or ThreadPoolExecutor(1, thread_name_prefix="parent of redis")
        return self._parent.submit(super().start).result()

    def stop(self, limit: float = 10.0) -> None:
        """And of that thread."""
        super().stop(limit)
        if self._parent is not None:
            self._parent.shutdown()
            self._parent = None

    @property
    def _data(self) -> Path:
        return self.folder / "appendonlydir"

    @property
    def _memory(self) -> Path:
        return self.folder / "remembered"

    def crash(self) -> None:
        """SIGKILL; what it had acknowledged is in the page cache, so it comes back whole."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def remember(self) -> None:
        """What a crash that loses everything from here on would leave on disk."""
        shutil.rmtree(self._memory, ignore_errors=True)
        shutil.copytree(self._data, self._memory)

    def forget(self) -> None:
        """Crash, lose everything since `remember`, and come back."""
        self.crash()
        shutil.rmtree(self._data)
        shutil.copytree(self._memory, self._data)
        self.start()

    def lose_all(self) -> None:
        """Crash, lose the disk, and come back empty."""
        self.crash()
        shutil.rmtree(self._data)
        self.start()

    def stall(self) -> None:
        """Answer nothing until `go_on`."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `stall`."""
        os.kill(self.pid, signal.SIGCONT)


class Proxy:
    """A way to a server on the loopback interface. `broken` is asked about every request; it breaks that connection."""

    def __init__(self, port: int) -> None:
        self._server, self._listener = ("127.0.0.1", port), socket.create_server(("127.0.0.1", 0))
        self.before: Callable[[bytes], bool] = lambda request: False  # then the server never hears it
        self.after: Callable[[bytes], bool] = lambda request: False  # then its answer never comes
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """One request, one answer, as redis-py does it; both are small enough for a buffer."""
        with client, socket.create_connection(self._server) as server, contextlib.suppress(OSError):
            while request := client.recv(1 << 20):
                if self.before(request):
                    return
                server.sendall(request)
                answer = server.recv(1 << 20)
                if self.after(request) or not answer:
                    return
                client.sendall(answer)


def once(word: bytes) -> Callable[[bytes], bool]:
    """True for the first request with this word in it."""
    seen: list[Any] = []

    def is_first(request: bytes) -> bool:
        if word in request and not seen:
            seen.append(request)
            return True
        return False

    return is_first
