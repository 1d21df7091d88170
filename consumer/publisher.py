"""Publishing off the critical path: upload on a thread, then commit; the learner trains on meanwhile.

Invariant: the commit comes after the upload is complete, so the pointer and the credit it frees never name weights
that are not there; publications happen one at a time, in order. Refuses to know what the weights are.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from broker.policy import PolicyStore
from consumer.background import Background
from monitoring.metrics import LearnerMetrics

RETRY_SECONDS = 5.0  # after an upload for which the disk had no room

log = structlog.get_logger("learner")


class Publisher(Background):
    """Publications, one at a time."""

    def __init__(self, policy: PolicyStore, protected: Callable[[], set[int]], metrics: LearnerMetrics) -> None:
        super().__init__("publisher")
        self._policy, self._protected, self._metrics = policy, protected, metrics

    def publish(self, version: int, fill: Callable[[Path], None], commit: Callable[[], None]) -> None:
        """Start uploading `version`, whose files `fill` writes into a folder; then call `commit` on the same thread."""
        self.start(partial(self._publish, version, fill, commit))

    def _publish(self, version: int, fill: Callable[[Path], None], commit: Callable[[], None]) -> None:
        while not self._written(version, fill):
            if self.closing.wait(RETRY_SECONDS):
                return
        commit()
        self._policy.prune(self._protected())

    def _written(self, version: int, fill: Callable[[Path], None]) -> bool:
        """False while the disk is full: what is published already serves on."""
        try:
            # A folder of this number beyond the pointer is a crashed learner's upload that nobody was told of.
            self._policy.write(version, fill, replace=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._metrics.publication_failures.inc()
            log.warning("no room for a policy version, tried again", version=version, seconds=RETRY_SECONDS)
            return False
        return True
