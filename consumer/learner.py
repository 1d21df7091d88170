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

from broker.documents import anyone_alive
from broker.keys import Keys
from broker.policy import PolicyStore
from broker.streams import Arrival, RolloutStream
from consumer.buffer import Bound, Held, StalenessBuffer, Wait
from consumer.dispatch import Dispatch
from consumer.durability import Durability
from consumer.evaluation import Evaluator
from consumer.position import Position
from consumer.publisher import Publisher
from consumer.record import StepTally
from consumer.recovery import Recovery
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer
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
    at: Position = field(default_factory=Position)
    degenerate_in_a_row: int = 0
    all_solved: bool = True
    buffer: StalenessBuffer = field(init=False)
    publisher: Publisher = field(init=False)
    durability: Durability = field(init=False)
    recovery: Recovery = field(init=False)
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    def __post_init__(self) -> None:
        self.buffer = StalenessBuffer(self.recipe.learner.order)
        self.publisher = Publisher(self.policy, self._named_versions, self.metrics)
        self.durability = Durability(self.recipe, self.dispatch, self.trainer, self.metrics, self.at)
        self.recovery = Recovery(
            self.recipe,
            self.rollouts,
            self.dispatch,
            self.policy,
            self.trainer,
            self.evaluator,
            self.metrics,
            self.durability,
            self.fill,
            self.at,
        )

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train until the number of steps is reached or nothing is left to learn; everything is final at return."""
        outcome = "finished"
        try:
            for arrival in self.recovery.open():
                self._receive(arrival)
            while self.at.step < self.recipe.run.steps:
                self._stay_durable()
                batch = self._next_batch()
                if batch is None:
                    outcome = "solved" if self.all_solved else "no signal"
                    break
                self._train(batch)
            if self.at.steps_at_version:
                self.at.publish()
                self._publish([])  # a run that ends between two publications: its last steps are published, too
            self.publisher.join()
            self.evaluator.start(self.dispatch.version, "end")
            self._wait_durable(self.durability.finish)
            self._drain_evaluations()
            self.tally.ended(outcome, self.dispatch.ledger.verdicts())
        finally:
            self.publisher.close()
            self.durability.thread.close()
        return outcome

    def _train(self, batch: list[Held]) -> None:
        started = time.perf_counter()
        self.dispatch.take(batch)
        groups = [held.group for held in batch]
        for group in groups:
            self.tally.consumed(group, "trained")
        with self.metrics.phase("train"):
            stats = self.trainer.train(groups, self.at.version)
        publish_seconds = self._advance([group.ticket_id for group in groups])
        at, settings = self.at, self.recipe.learner
        self.tally.step(
            stats, step=at.step, version=at.version, buffer=len(self.buffer), publish_seconds=publish_seconds
        )
        seconds = round(time.perf_counter() - started, 2)
        self.log.info("step", step=at.step, version=at.version, loss=round(stats.loss, 5), seconds=seconds)
        if at.steps_at_version:
            return
        if settings.eval_every and at.version % settings.eval_every == 0 and at.step < self.recipe.run.steps:
            self.publisher.join()
            self.evaluator.start(at.version, "periodic")

    def _advance(self, tickets: list[str]) -> float:
        """Count the step that was just taken and commit it, with a publication when one is due."""
        self.metrics.waiting("publish")
        with self.metrics.phase("publish"):
            waited = self.publisher.join()
        self.metrics.waiting("none")
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
        step, version, snapshot = self.at.step, self.at.version, self.trainer.snapshot()
        self.publisher.publish(
            version,
            lambda folder: self.fill(folder, snapshot),
            lambda: self.dispatch.commit(step, version, tickets, publish=True),
        )

    def _stay_durable(self) -> None:
        """Begin a checkpoint when one is due; wait for it where too much would hang on it."""
        self.durability.thread.check()
        if self.durability.due:
            with self.metrics.phase("checkpoint"):
                self.durability.begin(self.publisher.barrier())
        if self.durability.overdue:
            self._wait_durable(self.durability.catch_up)

    def _wait_durable(self, wait: Callable[[Callable[[], object]], None]) -> None:
        self.metrics.waiting("checkpoint")
        with self.metrics.phase("checkpoint"):
            wait(self.publisher.barrier())
        self.metrics.waiting("none")

    # -- what to train on ----------------------------------------------------------------------------------------

    def _bound(self) -> Bound:
        settings = self.recipe.learner
        return Bound(
            self.at.version,
            self.at.steps_at_version,
            self.recipe.run.max_staleness,
            settings.groups_per_step,
            settings.publish_every,
        )

    def _next_batch(self) -> list[Held] | None:
        """The next batch; None if the run has nothing left to learn from. Waits with a named reason."""
        started, settings = time.perf_counter(), self.recipe.learner
        if self.buffer.order == "strict":
            self.publisher.join()  # replacements and new tickets must be numbered in the same order in every run
        while True:
            self._consume()
            if settings.stop_when_solved and self.degenerate_in_a_row >= settings.max_degenerate_in_a_row:
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
        elif not self.dispatch.expects(arrival.ticket_id) or arrival.ticket_id in self.buffer:
            self.log.warning("a stranger's message, or a copy", ticket=arrival.ticket_id, reason=arrival.malformed)
            self.dispatch.discard(arrival, arrival.malformed or "no such ticket, or a copy")
        elif arrival.group is None:
            self.log.warning("malformed group", ticket=arrival.ticket_id, reason=arrival.malformed)
            self.tally.failed()
            self.dispatch.refuse(arrival, arrival.malformed)
        else:
            self.buffer.add(arrival)
            if not arrival.group.failed and not arrival.group.degenerate:
                self.degenerate_in_a_row, self.all_solved = 0, True

    def _anyone_alive(self) -> bool:
        raw: Any = self.client.hgetall(self.keys.generators)
        return anyone_alive(raw, self.clock())

    def _named_versions(self) -> set[int]:
        """In a deterministic run every version that a ticket may still ask for is kept."""
        if not self.recipe.run.deterministic:
            return set()
        return {*self.dispatch.waiting().values(), *(version for version, _ in list(self.evaluator.running))}

    def _drain_evaluations(self) -> None:
        while self.evaluator.running:
            self.metrics.waiting("evaluation" if self._anyone_alive() else "no live generator")
            for arrival in self.rollouts.claim(CLAIM_COUNT, CLAIM_SECONDS):
                self._receive(arrival)
        self.metrics.waiting("none")
