"""Publishing off the critical path: upload on a thread, then commit; the learner trains on meanwhile.

Invariant: the commit comes after the upload is complete, so the pointer and the credit it frees never name weights
that are not there; publications happen one at a time, in order. Refuses to know what the weights are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from broker.files import disk_full
from broker.points import reached
from broker.policy import PolicyStore
from consumer.background import RETRY_SECONDS, Background
from monitoring.metrics import LearnerMetrics

log = structlog.get_logger("learner")


class Publisher(Background):
    """Publications, one at a time."""

    def __init__(
        self,
        policy: PolicyStore,
        protected: Callable[[], set[int]],
        metrics: LearnerMetrics,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        super().__init__("publisher")
        self._policy, self._protected, self._metrics = policy, protected, metrics
        self._retry_seconds = retry_seconds

    def wait(self) -> float:
        """Until the publication under way is committed, saying so; seconds it took. Raises what went wrong in it."""
        self._metrics.waiting("publish")
        with self._metrics.phase("publish"):
            seconds = self.join()
        self._metrics.waiting("none")
        return seconds

    def publish(self, version: int, fill: Callable[[Path], None], commit: Callable[[], None]) -> None:
        """Start uploading `version`, whose files `fill` writes into a folder; then call `commit` on the same thread."""
        self.start(partial(self._publish, version, fill, commit))

    def _publish(self, version: int, fill: Callable[[Path], None], commit: Callable[[], None]) -> None:
        reached("publisher.begun")
        started = time.perf_counter()
        while True:
            try:
                # A folder of this number beyond the pointer is a crashed learner's upload that nobody was told of.
                self._policy.write(version, fill, replace=True)
                break
            except OSError as error:
                if not disk_full(error):
                    raise
                self._metrics.publication_failures.inc()
                log.warning("no room for a policy version, tried again", version=version, seconds=self._retry_seconds)
                if self.closing.wait(self._retry_seconds):
                    raise  # never published: whoever waits for it must not take it for done
        reached("publisher.uploaded")
        commit()
        self._metrics.publication_seconds.observe(time.perf_counter() - started)
        reached("publisher.committed")
        self._policy.prune(self._protected())
