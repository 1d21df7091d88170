"""Publishing off the critical path: upload on a thread, then commit; the learner trains on meanwhile.

Invariant: the commit comes after the upload is complete, so the pointer and the credit it frees never name weights
that are not there; publications happen one at a time, in order. Refuses to know what the weights are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from broker.policy import PolicyStore


class Publisher:
    """One background thread; `join` before whatever must see the publication's effects."""

    def __init__(self, policy: PolicyStore, protected: Callable[[], set[int]]) -> None:
        self._policy, self._protected = policy, protected
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        self._running: Future[float] | None = None

    def publish(self, version: int, fill: Callable[[Path], None], commit: Callable[[], None]) -> None:
        """Start uploading `version`, whose files `fill` writes into a folder; then call `commit` on the same thread."""
        self.join()
        self._running = self._thread.submit(self._publish, version, fill, commit)

    def join(self) -> float:
        """Wait for the publication under way; seconds it took (0 if there was none). Raises what went wrong in it."""
        if self._running is None:
            return 0.0
        running, self._running = self._running, None
        return running.result()

    def check(self) -> None:
        """Raise what went wrong in a publication that is over, without waiting for one that is not."""
        if self._running is not None and self._running.done():
            self._running.result()

    def close(self) -> None:
        """End the thread after the publication under way."""
        self._thread.shutdown(wait=True)

    def _publish(self, version: int, fill: Callable[[Path], None], commit: Callable[[], None]) -> float:
        started = time.perf_counter()
        # A folder of this number beyond the pointer is a crashed learner's upload that nobody was told of.
        self._policy.write(version, fill, replace=True)
        commit()
        self._policy.prune(self._protected())
        return time.perf_counter() - started
