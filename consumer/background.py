"""A thread that does one thing at a time for the learner, which trains on meanwhile.

Invariant: jobs run in the order in which they were started, one at a time, and what goes wrong in one is raised to
whoever asks next. Refuses to know what a job does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

RETRY_SECONDS = 5.0  # after a job for which the disk had no room


class Background:
    """One background thread; `join` before whatever must see a job's effects."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._running: Future[float] | None = None
        self.closing = threading.Event()  # a job that waits for something waits for this as well

    @property
    def busy(self) -> bool:
        """A job is under way."""
        return self._running is not None and not self._running.done()

    def start(self, job: Callable[[], None]) -> None:
        """Begin `job` as soon as the one before it is over. Raises what went wrong in that one."""
        self.join()
        self._running = self._thread.submit(_timed, job)

    def join(self) -> float:
        """Wait for the job under way; seconds it took (0 if there was none). Raises what went wrong in it."""
        if self._running is None:
            return 0.0
        running, self._running = self._running, None
        return running.result()

    def check(self) -> None:
        """Raise what went wrong in a job that is over, without waiting for one that is not."""
        if self._running is not None and self._running.done():
            self._running.result()

    def barrier(self) -> Callable[[], object]:
        """For another thread: waits for the job that is under way now. Raises what went wrong in it."""
        return self._running.result if self._running is not None else lambda: None

    def close(self) -> None:
        """End the thread after the job under way."""
        self.closing.set()
        self._thread.shutdown(wait=True)


def _timed(job: Callable[[], None]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started
