"""The learner: trains batch by batch, publishes, checkpoints, and evaluates on the way.

Invariant: a step exists once its MULTI is committed; `trained` is final once a durable checkpoint holds it; what lies
between is repeated after a crash, in the order that the journal names. Refuses to know text, and how gradients come
about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import structlog

from broker.audit_log import AuditLog
from broker.keys import Keys
from broker.points import reached
from broker.policy import PolicyStore
from broker.run_folder import RunFolder
from broker.streams import RolloutStream, forget_generators
from consumer.account import Accounts
from consumer.buffer import Held, StalenessBuffer
from consumer.dispatch import Dispatch
from consumer.durability import Durability
from consumer.evaluation import Evaluator
from consumer.inbox import Inbox
from consumer.intake import Intake
from consumer.memory import most
from consumer.position import Position
from consumer.publisher import Publisher
from consumer.record import StepTally
from consumer.recovery import Recovery
from consumer.settings import LearnerRecipe
from consumer.streak import Streak
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics

SILENT_LEASES = 20  # after which a generator that holds no ticket is forgotten


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
    fill: Callable[[Path, Mapping[str, Any]], None]  # writes a snapshot of the weights as a policy version
    audit: AuditLog = field(default_factory=AuditLog.off)
    clock: Callable[[], float] = time.time
    at: Position = field(default_factory=Position)
    streak: Streak = field(default_factory=Streak)
    accounts: Accounts = field(init=False)
    buffer: StalenessBuffer = field(init=False)
    inbox: Inbox = field(init=False)
    intake: Intake = field(init=False)
    publisher: Publisher = field(init=False)
    durability: Durability = field(init=False)
    recovery: Recovery = field(init=False)
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    def __post_init__(self) -> None:
        self.buffer = StalenessBuffer(self.recipe.learner.order, self.recipe.objective.degenerate == "keep")
        self.accounts = Accounts(self.audit, self.at, self.recipe.run.max_staleness)
        told = (self.evaluator, self.tally, self.metrics, self.streak, self.accounts)
        self.inbox = Inbox(self.rollouts, self.dispatch, self.buffer, *told)
        self.publisher = Publisher(self.policy, self._named_versions, self.metrics)
        self.intake = Intake(
            self.recipe,
            self.client,
            self.keys,
            self.inbox,
            self.buffer,
            self.dispatch,
            self.publisher,
            self.evaluator,
            self.tally,
            self.metrics,
            self.streak,
            self.at,
            self.accounts,
            self.clock,
        )
        self.durability = Durability(self.recipe, self.dispatch, self.trainer, self.metrics, self.at)
        parts = (self.rollouts, self.dispatch, self.policy, self.trainer, self.evaluator, self.metrics)
        self.recovery = Recovery(self.recipe, *parts, self.durability, self.fill, self.at)

    def run(self) -> str:
        """Train until the number of steps is reached or nothing is left to learn; everything is final at return."""
        outcome = "finished"
        try:
            for arrival in self.recovery.open():
                self.inbox.receive(arrival)
            self._evaluate()
            self._end_if_lost()  # by the steps that were just repeated
            of = self.recipe.objective
            self.metrics.ready_when(lambda: True)
            self.log.info("begins", step=self.at.step, version=self.at.version, redis_bytes_at_most=most(self.recipe))
            self.log.info("objective", preset=of.preset, changed=of.overridden)
            while self.at.step < self.recipe.run.steps:
                self._stay_durable()
                batch = self.intake.next_batch()
                if batch is None:
                    outcome = self.streak.outcome
                    break
                self._train(batch)
                self._end_if_lost()
            if self.at.steps_at_version:
                self.at.publish()
                self._publish([])  # a run that ends between two publications: its last steps are published, too
            self.publisher.wait()
            self.evaluator.start(self.dispatch.version, "end")
            reached("learner.steps-done")
            self._wait_durable(self.durability.finish)
            self.intake.drain_evaluations()
            self.tally.ended(outcome, self.dispatch.ledger.verdicts())
        finally:
            self.publisher.close()
            self.durability.thread.close()
            self.audit.close()
        return outcome

    def close(self) -> None:
        """Leave Redis."""
        self.client.close()
        self.rollouts.close()

    def _train(self, batch: list[Held]) -> None:
        started = time.perf_counter()
        with self.metrics.phase("claim"):
            self.dispatch.take(batch)
            reached("learner.batch-taken")
            groups, version = [held.group for held in batch], self.at.version
            for group in groups:
                self.tally.consumed(group, "trained")
                self.streak.consumed(group)
        stats = self.trainer.train(groups, version)
        reached("learner.trained")
        publish_seconds = self._advance([group.ticket_id for group in groups])
        self.accounts.trained(batch, self.trainer.uses, version)
        at = self.at
        with self.metrics.phase("figures"):
            self.tally.step(
                stats,
                step=at.step,
                version=at.version,
                buffer=len(self.buffer),
                publish_seconds=publish_seconds,
                curriculum=self.dispatch.curriculum(),
            )
        seconds = round(time.perf_counter() - started, 2)
        self.log.info("step", step=at.step, version=at.version, loss=round(stats.loss, 5), seconds=seconds)
        self._evaluate()

    def _evaluate(self) -> None:
        """Begin the evaluation that is due at this version, unless it was begun before."""
        at, every = self.at, self.recipe.learner.eval_every
        periodic = every and at.version % every == 0 and at.step < self.recipe.run.steps
        if at.steps_at_version or (at.step and not periodic):
            return
        self.publisher.wait()
        with self.metrics.phase("evaluate"):
            self.evaluator.start(at.version, "periodic" if at.step else "start")

    def _advance(self, tickets: list[str]) -> float:
        """Count the step that was just taken and commit it, with a publication when one is due."""
        waited = self.publisher.wait()
        last = self.at.step + 1 == self.recipe.run.steps
        due = self.at.steps_at_version + 1 >= self.recipe.learner.publish_every
        self.at.advance(publishing=due or last)
        if due or last:
            self._publish(tickets)
        else:
            self.dispatch.commit(self.at.step, self.at.version, tickets, publish=False)
        return waited

    def _publish(self, tickets: list[str]) -> None:
        """Upload the weights, and commit with them the step that these tickets made (none: the publication alone)."""
        with self.metrics.phase("publish"):
            step, version, snapshot = self.at.step, self.at.version, self.trainer.snapshot()
        self.publisher.publish(
            version,
            lambda folder: self.fill(folder, snapshot),
            lambda: self.dispatch.commit(step, version, tickets, publish=True),
        )

    def _stay_durable(self) -> None:
        """Begin a checkpoint when one is due; wait for it where too much would hang on it."""
        self.durability.thread.check()
        if self.trainer.guard.uneasy and not self.durability.at_the_end_of_memory:
            return  # the newest checkpoint stays that of a good step, to go on from
        if self.durability.due:
            with self.metrics.phase("checkpoint"):
                self.durability.begin(self.publisher.barrier())
            forget_generators(self.client, self.keys, SILENT_LEASES * self.recipe.broker.lease_seconds)
        if self.durability.overdue:
            self._wait_durable(self.durability.catch_up)

    def _end_if_lost(self) -> None:
        """Raises `Refused` where the collapse guard has seen enough, once the last good checkpoint is on disk."""
        guard = self.trainer.guard
        self.metrics.out_of_range.set(guard.uneasy)
        if guard.verdict:
            self.durability.thread.join()  # begun at a good step, and perhaps still being written
            raise guard.collapse(self.at.step, self.durability.durable, RunFolder.of(self.recipe.run).checkpoints)

    def _wait_durable(self, wait: Callable[[Callable[[], object]], None]) -> None:
        self.metrics.waiting("checkpoint")
        with self.metrics.phase("checkpoint"):
            wait(self.publisher.barrier())
        self.metrics.waiting("none")

    def _named_versions(self) -> set[int]:
        """In a deterministic run every version that a ticket may still ask for is kept."""
        if not self.recipe.run.deterministic:
            return set()
        return {
            *self.durability.named,
            *self.dispatch.named_versions(),
            *(evaluation.minimum for evaluation in list(self.evaluator.running.values())),
        }
