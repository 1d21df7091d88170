"""The learner: claims groups, waits by rule W, trains, publishes, checkpoints, and evaluates on the way.

Invariant: a step exists once its MULTI is committed; `trained` is final once a durable checkpoint holds it; what lies
between is repeated after a crash, in the order that the journal names. Refuses to know text, and how gradients come
about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import structlog

from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import Entry
from broker.policy import PolicyStore
from broker.run_folder import RunFolder
from broker.streams import Arrival, RolloutStream
from consumer import checkpoint
from consumer.buffer import Bound, Held, StalenessBuffer, Wait
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from consumer.publisher import Publisher
from consumer.record import StepTally
from consumer.settings import LearnerRecipe
from consumer.trainer import StepStats, Trainer
from monitoring.metrics import LearnerMetrics

CLAIM_SECONDS = 0.5  # longest wait for a group in one call: how soon a stop or a publication's failure is noticed
CLAIM_COUNT = 64


@dataclass
class Learner:
    """One learner process. `run` returns the outcome: `finished`, `solved` or `no signal`."""

    recipe: LearnerRecipe
    client: redis.Redis
    keys: Keys
    rollouts: RolloutStream
    dispatch: Dispatch
    policy: PolicyStore
    trainer: Trainer
    evaluator: Evaluator
    tally: StepTally
    metrics: LearnerMetrics
    fill: Callable[[Path, dict[str, Any]], None]  # writes a snapshot of the weights as a policy version
    clock: Callable[[], float] = time.time
    step: int = 0
    version: int = 0  # of the weights in the trainer, published or about to be
    steps_at_version: int = 0
    sequence: int = 0  # of the newest durable checkpoint
    degenerate_in_a_row: int = 0
    all_solved: bool = True
    buffer: StalenessBuffer = field(init=False)
    publisher: Publisher = field(init=False)
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    def __post_init__(self) -> None:
        self.buffer = StalenessBuffer(self.recipe.learner.order)
        self.publisher = Publisher(self.policy, self._named_versions)

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train until the number of steps is reached or nothing is left to learn; everything is final at return."""
        outcome = "finished"
        try:
            self._open()
            while self.step < self.recipe.run.steps:
                batch = self._next_batch()
                if batch is None:
                    outcome = "solved" if self.all_solved else "no signal"
                    break
                self._train(batch)
            self.publisher.join()
            self.evaluator.start(self.dispatch.version, "end")
            self._checkpoint()
            self._drain_evaluations()
        finally:
            self.publisher.close()
        return outcome

    def _train(self, batch: list[Held]) -> None:
        started = time.perf_counter()
        self.dispatch.take(batch)
        groups = [held.group for held in batch]
        for group in groups:
            self.tally.consumed(group, "trained")
        with self.metrics.phase("train"):
            stats = self.trainer.train(groups, self.version)
        publish_seconds = self._advance([group.ticket_id for group in groups])
        self.tally.step(
            stats, step=self.step, version=self.version, buffer=len(self.buffer), publish_seconds=publish_seconds
        )
        self.log.info(
            "step",
            step=self.step,
            version=self.version,
            loss=round(stats.loss, 5),
            seconds=round(time.perf_counter() - started, 2),
        )
        if (
            self.step % self.recipe.learner.checkpoint_every < self.recipe.learner.publish_every
            and self.steps_at_version == 0
        ):
            self._checkpoint()
        every = self.recipe.learner.eval_every
        if every and self.steps_at_version == 0 and self.version % every == 0 and self.step < self.recipe.run.steps:
            self.publisher.join()
            self.evaluator.start(self.version, "periodic")

    def _advance(self, tickets: list[str]) -> float:
        """Count the step that was just taken and commit it, with a publication when one is due."""
        with self.metrics.phase("publish"):
            waited = self.publisher.join()
        self.step += 1
        step, last = self.step, self.step == self.recipe.run.steps
        if self.steps_at_version + 1 < self.recipe.learner.publish_every and not last:
            self.steps_at_version += 1
            self.dispatch.commit(step, self.version, tickets, publish=False)
            return waited
        self.version += 1
        self.steps_at_version = 0
        version, snapshot = self.version, self.trainer.snapshot()
        self.publisher.publish(
            version,
            lambda folder: self.fill(folder, snapshot),
            lambda: self.dispatch.commit(step, version, tickets, publish=True),
        )
        return waited

    # -- what to train on ----------------------------------------------------------------------------------------

    def _bound(self) -> Bound:
        settings = self.recipe.learner
        return Bound(
            self.version,
            self.steps_at_version,
            self.recipe.run.max_staleness,
            settings.groups_per_step,
            settings.publish_every,
        )

    def _next_batch(self) -> list[Held] | None:
        """The next batch; None if the run has nothing left to learn from. Waits with a named reason."""
        started = time.perf_counter()
        if self.buffer.order == "strict":
            self.publisher.join()  # replacements and new tickets must be numbered in the same order in every run
        while True:
            self._consume()
            if (
                self.degenerate_in_a_row >= self.recipe.learner.max_degenerate_in_a_row
                and self.recipe.learner.stop_when_solved
            ):
                return None
            found = self.buffer.take(self.dispatch.waiting(), self._bound())
            if not isinstance(found, Wait):
                self.tally.waited(time.perf_counter() - started)
                self.metrics.waiting("none")
                return found
            self.publisher.check()
            self._wait(found)

    def _consume(self) -> None:
        verdicts = self.buffer.consumed(self.dispatch.waiting(), self._bound())
        self.dispatch.consume(verdicts)
        for held, verdict in verdicts:
            self.tally.consumed(held.group, verdict)
            if verdict == "failed":
                self.log.warning("a group failed", ticket=held.group.ticket_id, reason=held.group.failed)
            if verdict == "degenerate":
                self.degenerate_in_a_row += 1
                self.all_solved &= float(held.group.rewards.max()) > 0

    def _wait(self, why: Wait) -> None:
        reason = why.reason if self._anyone_alive() else "no live generator"
        self.metrics.waiting(reason, why.ticket_id)
        with self.metrics.phase("wait"):
            arrivals = self.rollouts.claim(CLAIM_COUNT, CLAIM_SECONDS)
        for arrival in arrivals:
            self._receive(arrival)

    def _receive(self, arrival: Arrival) -> None:
        if arrival.kind == "eval":
            self.evaluator.add(arrival)
        elif arrival.group is None:
            self.log.warning("malformed group", ticket=arrival.ticket_id, reason=arrival.malformed)
            self.tally.failed()
            self.dispatch.refuse(arrival, arrival.malformed)
        elif not self.dispatch.expects(arrival.ticket_id) or not self.buffer.add(arrival):
            self.dispatch.refuse(arrival, "no such ticket, or a copy")
        else:
            if not arrival.group.failed and not arrival.group.degenerate:
                self.degenerate_in_a_row, self.all_solved = 0, True

    def _anyone_alive(self) -> bool:
        raw: Any = self.client.hgetall(self.keys.generators)
        return any(float(until) > self.clock() for until in raw.values())

    def _named_versions(self) -> set[int]:
        """In a deterministic run every version that a ticket may still ask for is kept."""
        return set(self.dispatch.waiting().values()) if self.recipe.run.deterministic else set()

    # -- starting and becoming durable ------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return RunFolder.of(self.recipe.run).checkpoints

    def _open(self) -> None:
        found = checkpoint.newest(self._checkpoints)
        sequence = self.dispatch.ledger.count("sequence")
        if found is None and (sequence or self.dispatch.ledger.count("policy_version")):
            raise Refused(
                f"Redis holds the run {self.recipe.run.name} and {self._checkpoints} holds no checkpoint of it",
                "choose another run.name, or bring the checkpoints back",
            )
        if found is not None:
            self._restore(found, sequence)
            return
        if self.dispatch.ledger.count("issued") == 0:
            # Checkpoint 0 first: from the first ticket on there is something to replay from.
            snapshot = self.trainer.snapshot()
            self.policy.write(0, lambda folder: self.fill(folder, snapshot), replace=True)
            checkpoint.write(
                self._checkpoints,
                0,
                self.trainer.state_dict(),
                self._document([], 0),
                self.recipe.learner.keep_checkpoints,
            )
            self.dispatch.open(0)
            self.evaluator.start(0, "start")

    def _restore(self, found: checkpoint.Checkpoint, sequence: int) -> None:
        """Load, finish the settlement the checkpoint owes, repeat the journalled steps, go on."""
        document = found.document
        if sequence not in (document["sequence"] - 1, document["sequence"]):
            raise Refused(
                f"checkpoint {found.folder} (sequence {document['sequence']}) does not belong to "
                f"Redis' ledger (sequence {sequence})",
                "bring back the matching checkpoint, or choose another run.name",
            )
        self.trainer.load_state_dict(found.state())
        self.step, self.version, self.sequence = document["step"], document["version"], document["sequence"]
        if document["step"] == 0 and self.dispatch.ledger.count("issued") == 0:
            self.policy.write(0, lambda folder: self.fill(folder, self.trainer.snapshot()), replace=True)
            self.dispatch.open(0)
            self.evaluator.start(0, "start")
            return
        if sequence == document["sequence"] - 1:
            entries = [Entry.decode(entry) for entry in document["entries"]]
            ids = {t: e.encode() for t, e in document["entry_ids"].items()}
            self.dispatch.make_final(entries, self.sequence, ids)
        self._replay()
        self.evaluator.resume()
        self.dispatch.refill()

    def _replay(self) -> None:
        pending = {arrival.ticket_id: arrival for arrival in self.rollouts.pending()}
        self.dispatch.resume(self.policy.newest() or 0)
        for entry in self.dispatch.journal:
            lost = [t for t in entry.tickets if t not in pending or pending[t].group is None]
            if lost:
                raise Refused(f"step {entry.step} cannot be repeated: its group {lost[0]} is gone from Redis")
            arrivals = [pending.pop(t) for t in entry.tickets]
            self.dispatch.entry_ids.update({a.ticket_id: a.entry_id for a in arrivals})
            self.trainer.train([a.group for a in arrivals if a.group is not None], self.version)
            self.step, self.version = entry.step, entry.version
            self.steps_at_version = 0 if entry.published else self.steps_at_version + 1
            self.log.info("repeated a step", step=self.step, version=self.version)
        for arrival in pending.values():
            self._receive(arrival)

    def _checkpoint(self) -> None:
        """Write a checkpoint; once it is durable its steps are final."""
        with self.metrics.phase("checkpoint"):
            self.publisher.join()
            entries = list(self.dispatch.journal)
            if not entries:
                return
            document = self._document(entries, self.sequence + 1)
            keep = self.recipe.learner.keep_checkpoints
            checkpoint.write(self._checkpoints, self.step, self.trainer.state_dict(), document, keep)
            self.sequence += 1
            self.dispatch.make_final(entries, self.sequence, self.dispatch.entry_ids)

    def _document(self, entries: list[Entry], sequence: int) -> dict[str, Any]:
        ids = {t: self.dispatch.entry_ids[t].decode() for entry in entries for t in entry.tickets}
        return {
            "version": self.version,
            "sequence": sequence,
            "entries": [entry.encode() for entry in entries],
            "entry_ids": ids,
        }

    def _drain_evaluations(self) -> None:
        while self.evaluator.running:
            self.metrics.waiting("evaluation" if self._anyone_alive() else "no live generator")
            for arrival in self.rollouts.claim(CLAIM_COUNT, CLAIM_SECONDS):
                self._receive(arrival)
        self.metrics.waiting("none")


__all__ = ["Learner", "StepStats"]
