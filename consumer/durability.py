"""When a checkpoint is due, and its writing on a thread of its own; once it is durable its steps are final.

Invariant: never more than twice `checkpoint_every` steps are without a durable checkpoint (and the collapse guard's
hesitation): where the disk is full the last one stands, the learner trains on up to there and then waits, saying so.
Refuses to know how a run begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from torch import Tensor

from broker.cut import Cut
from broker.files import disk_full
from broker.ledger import Entry
from broker.points import reached
from broker.run_folder import RunFolder
from consumer import checkpoint
from consumer.background import RETRY_SECONDS, Background
from consumer.dispatch import Dispatch
from consumer.position import Position
from consumer.settings import LearnerRecipe
from consumer.shards import Shards
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics


@dataclass
class Durability:
    """The checkpoints of one learner. All methods are the training thread's."""

    recipe: LearnerRecipe
    dispatch: Dispatch
    trainer: Trainer
    metrics: LearnerMetrics
    at: Position
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    begun: int = 0  # step of the newest checkpoint that was begun
    durable: int = 0  # step of the newest one on disk
    write: Callable[..., object] = checkpoint.write
    named: frozenset[int] = frozenset()  # versions that open tickets of the newest one on disk name
    retry_at: float | None = None  # on `clock`, after one that failed
    thread: Background = field(default_factory=lambda: Background("checkpoints"))
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    def first(self) -> None:
        """Checkpoint 0, before the first ticket, in the foreground. Raises `OSError` (ENOSPC) where it has no room."""
        self._write(self.trainer.state(), self._document([], {}, 0, Cut.nothing()), 0)

    def resumed(self, found: checkpoint.Checkpoint) -> None:
        """The learner stands on this durable checkpoint."""
        self.begun = self.durable = found.step
        self.named = found.settled.named_versions()
        self.metrics.checkpoint_step.set(found.step)
        self.metrics.step.set(found.step)

    @property
    def due(self) -> bool:
        """A checkpoint may begin now and should."""
        settings = self.recipe.learner
        late = self.at.step - self.begun >= settings.checkpoint_every
        return late and not self.at.steps_at_version and not self.thread.busy and self._may_retry

    @property
    def overdue(self) -> bool:
        """No further step may be taken before a checkpoint is durable."""
        return self.at.step - self.durable >= 2 * self.recipe.learner.checkpoint_every and not self.at.steps_at_version

    @property
    def at_the_end_of_memory(self) -> bool:
        """More steps are without a durable checkpoint than a hesitation of the collapse guard explains."""
        return self.at.step - self.durable >= self.recipe.learner.most_unsaved_steps

    def begin(self, published: Callable[[], object]) -> None:
        """Copy the state as it is now and write it on the thread, after `published` (a wait for its version)."""
        self.thread.join()
        self.begun = self.at.step
        with self.dispatch.lock:
            self.dispatch.cuts.keep(self.at.step)
        self.thread.start(partial(self._make_durable, published, self.trainer.state(), self.at.step))

    def catch_up(self, published: Callable[[], object]) -> None:
        """Wait until no checkpoint is overdue, however long the disk is full."""
        self._until(lambda: not self.overdue, published)

    def finish(self, published: Callable[[], object]) -> None:
        """Wait until every step so far is final, however long the disk is full."""
        self._until(lambda: not self.dispatch.journal, published)

    def _until(self, enough: Callable[[], bool], published: Callable[[], object]) -> None:
        self.thread.join()
        while not enough():
            if self.retry_at is not None:
                self.sleep(max(0.0, self.retry_at - self.clock()))
            self.begin(published)
            self.thread.join()

    @property
    def _may_retry(self) -> bool:
        return self.retry_at is None or self.clock() >= self.retry_at

    def _make_durable(self, published: Callable[[], object], state: Mapping[str, Tensor] | Shards, step: int) -> None:
        """On the thread: what is committed up to `step` becomes final, unless there is no room for the checkpoint."""
        published()
        with self.dispatch.lock:
            entries = [entry for entry in self.dispatch.journal if entry.step <= step]
            ids = {t: self.dispatch.entry_ids[t] for entry in entries for t in entry.tickets}
            cut = self.dispatch.cuts.of(step)
        if not entries or cut is None:  # none: nothing was committed since the last one
            return
        sequence = self.at.sequence + 1
        try:
            self._write(state, self._document(entries, ids, sequence, cut), step)
        except OSError as error:
            if not disk_full(error):
                raise
            self.metrics.checkpoint_failures.inc()
            self.log.warning("no room for a checkpoint, the last one stands", step=step, last=self.durable)
            self.begun, self.retry_at = self.durable, self.clock() + RETRY_SECONDS
            return
        reached("checkpoint.durable")
        self.retry_at = None
        self.at.sequence, self.durable, self.named = sequence, step, cut.trained(ids, sequence).named_versions()
        self.dispatch.make_final(entries, sequence, ids, cut.observed)
        reached("checkpoint.final")

    def _document(self, entries: list[Entry], ids: dict[str, bytes], sequence: int, cut: Cut) -> dict[str, Any]:
        return {
            "adapts": self.trainer.model.adapts,
            "cut": cut.encode(),
            "history": self.dispatch.history(cut).encode(),
            "version": entries[-1].version if entries else self.at.version,
            "sequence": sequence,
            "entries": [entry.encode() for entry in entries],
            "entry_ids": {ticket: entry_id.decode() for ticket, entry_id in ids.items()},
        }

    def _write(self, state: Mapping[str, Tensor] | Shards, document: dict[str, Any], step: int) -> None:
        started = time.perf_counter()
        settings = self.recipe.learner
        folder = RunFolder.of(self.recipe.run).checkpoints
        self.write(folder, step, state, document, settings.keep_checkpoints, settings.keep_every)
        self.metrics.checkpoint_seconds.observe(time.perf_counter() - started)
        self.metrics.checkpoint_step.set(step)
        self.metrics.progress()
