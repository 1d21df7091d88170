"""A learner in virtual time: production's Dispatch, StalenessBuffer, ledger and PolicyStore, and steps that only last.

Invariant: every batch, verdict, ticket and version is decided and committed by production code over a real Redis.
Refuses to know generators, and how long a step takes until it begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from benchmarks.virtual_load import Shape
from benchmarks.virtual_time import Agenda
from broker.keys import Keys
from broker.ledger import Ledger
from broker.policy import PolicyStore
from broker.streams import RolloutStream, create_groups
from consumer.buffer import Bound, Held, Order, StalenessBuffer, Wait
from consumer.dispatch import Dispatch
from consumer.tickets import Flow

ENDLESS = 10**9  # groups


@dataclass
class VirtualLearner:
    """Takes in and trains when it is told that something has arrived; `issued` is called when there are new tickets."""

    client: redis.Redis
    keys: Keys
    folder: Path
    shape: Shape
    agenda: Agenda
    step_seconds: Callable[[], float]
    issued: Callable[[], None]
    order: Order = "ready"
    step: int = 0
    version: int = 0
    waited: float = 0.0  # seconds, the present wait not counted
    waiting_since: float | None = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    staleness: list[int] = field(default_factory=list)  # of each group trained on
    published: list[float] = field(default_factory=list)  # when each version was
    training: list[Held] = field(default_factory=list)
    learnt: list[str] = field(default_factory=list)  # the batch of the version that is being published
    checkpoints: int = 0

    def __post_init__(self) -> None:
        create_groups(self.client, self.keys)
        ledger = Ledger(self.client, self.keys)
        ledger.fence.take_over()
        flow = Flow(self.shape.capacity, self.shape.groups_per_step, ENDLESS, problems=1000, seed=0)
        self.dispatch = Dispatch(ledger, PolicyStore(self.client, self.keys, self.folder, 2, 60.0), flow)
        self.buffer = StalenessBuffer(self.order)
        self.rollouts = RolloutStream(self.client, self.client, self.keys)
        self._upload()
        self.dispatch.open(0)
        self.published.append(0.0)

    @property
    def waited_until_now(self) -> float:
        """Seconds without a batch, all in all."""
        return self.waited + (0.0 if self.waiting_since is None else self.agenda.now - self.waiting_since)

    def poll(self) -> None:
        """One that waits takes in what has arrived, and a batch if it may have one; one that trains does not look."""
        while not self.training:
            arrivals = self.rollouts.claim(64, 0)
            for arrival in arrivals:
                if not self.dispatch.expects(arrival.ticket_id) or not self.buffer.add(arrival):
                    self.dispatch.discard(arrival, "copy")
            verdicts = self.buffer.consumed(self.dispatch.waiting(), self._bound())
            self.verdicts.update(verdict for _, verdict in verdicts)
            self.dispatch.consume(verdicts)
            found = self.buffer.take(self.dispatch.waiting(), self._bound())
            if not isinstance(found, Wait):
                self._train(found)
            if verdicts:
                self.issued()
            if not arrivals:
                return

    def checkpoint(self) -> None:
        """Every committed step becomes final."""
        if self.dispatch.journal:
            self.checkpoints += 1
            self.dispatch.make_final(list(self.dispatch.journal), self.checkpoints, self.dispatch.entry_ids, 0)

    def _bound(self) -> Bound:
        return Bound(self.version, 0, self.shape.max_staleness, self.shape.groups_per_step)

    def _train(self, batch: list[Held]) -> None:
        self.dispatch.take(batch)
        self.training = batch
        self.staleness += [self.version - held.group.oldest_version for held in batch]
        self.verdicts["trained"] += len(batch)
        self.waited, self.waiting_since = self.waited_until_now, None
        self.agenda.after(self.step_seconds(), self._trained)

    def _trained(self) -> None:
        """A step is over; its version is published beside what comes next, and after the one before it."""
        self._land(self.version)
        self.learnt = [held.group.ticket_id for held in self.training]
        self.step, self.version = self.step + 1, self.version + 1
        self.training, self.waiting_since = [], self.agenda.now
        version = self.version
        self.agenda.after(self.shape.publication_seconds, lambda: self._land(version))
        self.poll()

    def _land(self, version: int) -> None:
        """The publication of `version`, if it is still under way, is committed: its credit becomes tickets."""
        if self.dispatch.version >= version:
            return
        batch, self.learnt = self.learnt, []
        self._upload()
        self.dispatch.commit(self.step, version, batch, publish=True)
        self.dispatch.policy.prune()
        self.published.append(self.agenda.now)
        if self.step % self.shape.checkpoint_every == 0:
            self.checkpoint()
        self.issued()

    def _upload(self) -> None:
        version = str(self.version)
        self.dispatch.policy.write(self.version, lambda folder: _fill(folder, version))


def _fill(folder: Path, version: str) -> None:
    (folder / "weights").write_text(version)
