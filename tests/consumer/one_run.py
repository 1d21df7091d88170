"""One run in this process: the production learner over a real Redis, and a hand that answers its tickets.

Invariant: a new `learner()` knows of the run only what Redis and the run's folder hold. A crash is an upload that
fails: what was under way is lost, as with a kill. Refuses to know what a test wants to see.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from msgspec.structs import replace

from broker.audit_log import AuditLog
from broker.fence import Fence
from broker.keys import Keys
from broker.ledger import Ledger
from broker.patience import Patience
from broker.schema import RolloutGroup, Ticket
from broker.streams import RolloutStream, create_groups
from broker.ticket_id import TicketId
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from consumer.learner import Learner
from consumer.record import StepTally
from consumer.tickets import Flow
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics
from tests.consumer.desk import Desk
from tests.consumer.groups import group, llama, policy_model, recipe, rollout

SECONDS = 20.0
Answer = Callable[[Ticket], RolloutGroup | None]


def mixed(ticket: Ticket) -> RolloutGroup:
    """A right and a wrong answer, others for every ticket; every third train group is degenerate."""
    number = (
        int(ticket.ticket_id.rpartition("-")[2]) if ticket.kind == "eval" else TicketId.parse(ticket.ticket_id).number
    )
    degenerate = ticket.kind == "train" and number % 3 == 2
    made = group(ticket.ticket_id, (1.0, 1.0) if degenerate else (0.0, 1.0), ticket.min_policy_version)
    lengths = (1 + number % 4, 1 + number % 3)
    spans = [[(ticket.min_policy_version, 0, length)] for length in lengths]
    answers = [[1 + (7 * number + 3 * n + length) % 39 for n in range(length)] for length in lengths]
    rollouts = [rollout(a, r.reward, spans=s) for a, r, s in zip(answers, made.rollouts, spans, strict=True)]
    return replace(made, rollouts=tuple(rollouts))


@dataclass
class Run:
    """One run on disk and in Redis, whose learner may be started again and again."""

    client: redis.Redis
    blocking: redis.Redis
    keys: Keys
    folder: Path
    learner_settings: dict[str, Any] = field(default_factory=dict)
    run_settings: dict[str, Any] = field(default_factory=dict)
    evaluate: int = 0
    patience: Patience = field(default_factory=lambda: Patience(0.0))
    audit: Callable[[], AuditLog] = AuditLog.off

    def __post_init__(self) -> None:
        self.desk = Desk(self.client, self.keys, self.folder / "policy", self.patience)

    def learner(self, crash_at: int | None = None) -> Learner:
        """A new learner process, so to say. It dies when it uploads version `crash_at`."""
        of = recipe(
            {"groups_per_step": 2, "order": "strict", **self.learner_settings},
            **{"directory": self.folder, "name": self.keys.run, **self.run_settings},
        )
        flow = Flow(of.capacity, 2, 2 * of.run.steps, 7, 0, course=of.learner.course)
        metrics, model = LearnerMetrics(), policy_model(llama(), of)
        tally = StepTally(self.folder / of.run.name / "steps.jsonl", of.run.steps, metrics)

        def fill(folder: Path, snapshot: Mapping[str, Any]) -> None:
            if folder.name.startswith(f".writing-{crash_at}-"):
                raise InterruptedError("crash")
            model.write(folder, snapshot)

        fence = Fence(self.client, self.keys, self.patience)
        fence.take_over()
        create_groups(self.client, self.keys)
        ledger = Ledger(self.client, self.keys, "train", fence)
        evaluations = Ledger(self.client, self.keys, "eval", ledger.fence)
        return Learner(
            of,
            self.client,
            self.keys,
            RolloutStream(self.client, self.blocking, self.keys, patience=self.patience),
            Dispatch(ledger, self.desk.policy, flow),
            self.desk.policy,
            Trainer(model, of),
            Evaluator(evaluations, self.evaluate, 0, tally.evaluation),
            tally,
            metrics,
            fill,
            self.audit(),
        )

    @contextmanager
    def answering(self, answer: Answer = mixed) -> Iterator[None]:
        """A generator's hand, a ticket at a time; one whose answer is None it keeps."""
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                for ticket in self.desk.claim(1):
                    made = answer(ticket)
                    if made is not None:
                        self.desk.publish(replace(made, kind=ticket.kind))
                stop.wait(0.005)

        hand = threading.Thread(target=work)
        hand.start()
        try:
            yield
        finally:
            stop.set()
            hand.join()

    def finish(self, learner: Learner, answer: Answer = mixed, seconds: float = SECONDS) -> str:
        """Run the learner to its end, which must come within a deadline. Raises what ended it."""
        outcome: list[str | BaseException] = []

        def work() -> None:
            try:
                outcome.append(learner.run())
            except BaseException as error:  # handed to the test
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        with self.answering(answer):
            thread.start()
            thread.join(seconds)
        assert outcome, f"the learner waits for ever: {learner.metrics.health()['waiting']}"
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def lines(self, kind: str) -> list[dict[str, Any]]:
        text = (self.folder / self.keys.run / "steps.jsonl").read_text()
        return [record for record in map(json.loads, text.splitlines()) if kind in record]
