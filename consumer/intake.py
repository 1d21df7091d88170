"""What to train on next: groups are taken in until a batch may be had, and a wait for one has a name.

Invariant: every group that is left out of a batch for good has its verdict in the books before the batch is handed out.
Refuses to know what is done with a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from broker.joining import alive
from broker.keys import Keys
from broker.points import reached
from consumer.account import Accounts
from consumer.buffer import Bound, Held, StalenessBuffer, Wait
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from consumer.inbox import Inbox
from consumer.position import Position
from consumer.publisher import Publisher
from consumer.record import StepTally
from consumer.settings import LearnerRecipe
from consumer.streak import Streak
from monitoring.metrics import LearnerMetrics

log = structlog.get_logger("learner")


@dataclass
class Intake:
    """Of one learner."""

    recipe: LearnerRecipe
    client: redis.Redis
    keys: Keys
    inbox: Inbox
    buffer: StalenessBuffer
    dispatch: Dispatch
    publisher: Publisher
    evaluator: Evaluator
    tally: StepTally
    metrics: LearnerMetrics
    streak: Streak
    at: Position
    accounts: Accounts
    clock: Callable[[], float] = time.time
    heard: int = 0  # groups that the last wait for one brought

    def next_batch(self) -> list[Held] | None:
        """The next batch; None if the run has nothing left to learn from. Waits with a named reason."""
        started, settings = time.perf_counter(), self.recipe.learner
        if self.buffer.order == "strict":
            self.publisher.wait()  # replacements and new tickets must be numbered in the same order in every run
        while True:
            with self.metrics.phase("claim"):
                self._consume()
                if settings.stop_when_solved and self.streak.length >= settings.max_degenerate_in_a_row:
                    return None
                self.metrics.buffer.set(len(self.buffer))
                with self.dispatch.lock:
                    found = self.buffer.take(self.dispatch.waiting(), self._bound())
            if not isinstance(found, Wait):
                self.tally.waited(time.perf_counter() - started)
                self.metrics.waiting("none")
                return found
            self.publisher.check()
            self._wait(found)

    def drain_evaluations(self) -> None:
        """Take in what arrives until no evaluation is under way."""
        while self.evaluator.running:
            self.metrics.waiting("evaluation" if self._anyone_alive() else "no live generator")
            self.heard = self.inbox.take_in()
        self.metrics.waiting("none")

    def _bound(self) -> Bound:
        at, run, of = self.at, self.recipe.run, self.recipe.learner
        return Bound(at.version, at.steps_at_version, run.max_staleness, of.groups_per_step, of.publish_every)

    def _consume(self) -> None:
        with self.dispatch.lock:
            verdicts = self.buffer.consumed(self.dispatch.waiting(), self._bound())
        # In strict order what replaces a group must not depend on which others had arrived by then.
        for together in ([verdict] for verdict in verdicts) if self.buffer.order == "strict" else [verdicts]:
            self.dispatch.consume(together)
        if verdicts:
            reached("learner.consumed")
        for held, verdict in verdicts:
            self.tally.consumed(held.group, verdict)
            self.accounts.dropped(held, verdict)
            if verdict == "failed":
                log.warning("a group failed", ticket=held.group.ticket_id, reason=held.group.failed)
            if verdict == "degenerate":
                self.streak.consumed(held.group)

    def _wait(self, why: Wait) -> None:
        with self.metrics.phase("wait"):
            reason = why.reason if self._anyone_alive() else "no live generator"
        self.metrics.waiting(reason, why.ticket_id)
        self.heard = self.inbox.take_in()

    def _anyone_alive(self) -> bool:
        if self.heard:  # somebody is: nobody needs to go through all of them after each group
            return True
        raw: Any = self.client.hgetall(self.keys.generators)
        return alive(raw, self.clock()) > 0
