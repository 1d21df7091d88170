"""What the learner's side of the flow costs a group in CPU time, with so many generators at work.

Production's Intake, Inbox, StalenessBuffer, Dispatch and ledger over a real Redis, as `consumer.learner` uses them;
generators, the training itself and the uploads are virtual and not counted. Tickets in play grow with the generators as
sizing has it, the batch does not: what a commit costs is shared by as many groups everywhere, and what grows with the
tickets in play shows. Invariant: every instruction between the arrival of a group and the commit of its step is
counted, and no other. Refuses to know what costs ought to be.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import redis

from benchmarks.scale_meter import Meter
from benchmarks.scale_times import Times
from benchmarks.virtual_fleet import Fleet
from benchmarks.virtual_load import Shape
from benchmarks.virtual_time import Agenda
from broker.audit_log import AuditLog
from broker.keys import Keys
from broker.ledger import Ledger
from broker.policy import PolicyStore
from broker.streams import Arrival, RolloutStream, create_groups
from consumer.account import Accounts
from consumer.buffer import StalenessBuffer
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from consumer.inbox import Inbox
from consumer.intake import Intake
from consumer.position import Position
from consumer.publisher import Publisher
from consumer.record import StepTally
from consumer.settings import LearnerRecipe
from consumer.streak import Streak
from consumer.tickets import Flow
from monitoring.metrics import LearnerMetrics

BATCH, CHECKPOINT_EVERY, BOUND = 32, 10, 16
COMPLETIONS, TOKENS = 8, 64
ENDLESS = 10**6  # steps


class VirtualStream(RolloutStream):
    """The learner's end of the stream; who waits at it lets virtual time pass until something arrives."""

    fleet: Fleet
    agenda: Agenda
    meter: Meter
    unread = 0

    def claim(self, count: int, block_seconds: float) -> list[Arrival]:
        """As its base class does; nothing is waited for in real time."""
        if not self.unread and block_seconds > 0:
            with self.meter.paused():
                while not self.unread:
                    self.agenda.next()
        arrivals = super().claim(count, 0)
        self.unread -= len(arrivals)
        return arrivals

    def answered(self) -> None:
        """One more group is there."""
        self.unread += 1


@dataclass
class Station:
    """A learner without a model, and `generators` of one slot each. `step_seconds` 0: it waits for every group."""

    client: redis.Redis
    folder: Path
    meter: Meter
    times: Times
    generators: int
    step_seconds: float = 1.0
    agenda: Agenda = field(default_factory=Agenda)
    at: Position = field(default_factory=Position)
    checkpoints: int = 0

    def __post_init__(self) -> None:
        self.keys = Keys(f"cost-{self.generators}-{self.step_seconds:g}")
        create_groups(self.client, self.keys)
        now = {f"g{n}": str(time.time() + 1e6) for n in range(self.generators)}
        self.client.hset(self.keys.generators, mapping=now)  # type: ignore[arg-type]
        self._make_learner()
        self._make_generators()
        self._upload()
        self.dispatch.open(0)
        self.fleet.scale(self.generators, warm=True)

    @property
    def shape(self) -> Shape:
        """By docs and DESIGN: capacity for twice the slots and a batch; time enough for the slowest of many."""
        depth = max(2, math.ceil(2 * self.generators / BATCH))
        return Shape(1, BATCH, depth, max(BOUND, BOUND // 2 * depth), 0.0, 0.0, 0.0)

    def _make_learner(self) -> None:
        shape, metrics = self.shape, LearnerMetrics()
        recipe = LearnerRecipe.model_validate(
            {
                "run": {"name": "cost", "model": "none", "steps": ENDLESS, "max_staleness": shape.max_staleness},
                "sampling": {"max_tokens": TOKENS},
                "learner": {"groups_per_step": BATCH, "pipeline_depth": shape.pipeline_depth},
            }
        )
        ledger = Ledger(self.client, self.keys)
        ledger.fence.take_over()
        self.policy = PolicyStore(self.client, self.keys, self.folder / self.keys.run, 2, 60.0)
        flow = Flow(recipe.capacity, BATCH, ENDLESS * BATCH, problems=7473, seed=0)
        self.dispatch = Dispatch(ledger, self.policy, flow)
        self.buffer, self.rollouts = StalenessBuffer("ready"), VirtualStream(self.client, self.client, self.keys)
        evaluations = Ledger(self.client, self.keys, "eval", ledger.fence)
        evaluator = Evaluator(evaluations, 0, 0, lambda _: None)
        self.tally = StepTally(self.folder / f"{self.keys.run}.jsonl", ENDLESS, metrics)
        self.streak, accounts = Streak(), Accounts(AuditLog.off(), self.at, shape.max_staleness)
        inbox = Inbox(self.rollouts, self.dispatch, self.buffer, evaluator, self.tally, metrics, self.streak, accounts)
        self.publisher = Publisher(self.policy, set, metrics)
        self.intake = Intake(
            recipe, self.client, self.keys, inbox, self.buffer, self.dispatch, self.publisher, evaluator, self.tally,
            metrics, self.streak, self.at, accounts,
        )  # fmt: skip

    def _make_generators(self) -> None:
        chance, mean = np.random.default_rng(1), self.generators / BATCH
        self.published = [0.0]
        self.fleet = Fleet(
            self.client,
            self.keys,
            self.shape,
            self.agenda,
            chance,
            lambda: mean * float(self.times.draw(chance, 1)[0]),
            self.rollouts.answered,
            self.published,
            COMPLETIONS,
            TOKENS,
            None,
        )
        self.rollouts.fleet, self.rollouts.agenda, self.rollouts.meter = self.fleet, self.agenda, self.meter

    def step(self) -> None:
        """One, of which what `consumer.learner` does about groups and tickets is counted."""
        with self.meter.counting():
            batch = self.intake.next_batch()
            assert batch is not None
            self.dispatch.take(batch)
            groups = [held.group for held in batch]
            for group in groups:
                self.tally.consumed(group, "trained")
                self.streak.consumed(group)
        self.agenda.run(self.agenda.now + self.step_seconds)
        self.at.advance(publishing=True)
        self._upload()
        with self.meter.counting():
            self.dispatch.commit(self.at.step, self.at.version, [group.ticket_id for group in groups], publish=True)
        self.published.append(self.agenda.now)
        self.policy.prune()
        if self.at.step % CHECKPOINT_EVERY == 0:
            self._checkpoint()
        self.fleet.serve()

    def _checkpoint(self) -> None:
        """What is done once one is durable."""
        self.checkpoints += 1
        entries = list(self.dispatch.journal)
        with self.meter.counting():
            ids = {t: self.dispatch.entry_ids[t] for entry in entries for t in entry.tickets}
            self.dispatch.make_final(entries, self.checkpoints, ids, 0)

    def _upload(self) -> None:
        version = str(self.at.version)
        self.policy.write(self.at.version, lambda folder: _fill(folder, version))

    def close(self) -> None:
        """End its thread."""
        self.publisher.close()


def _fill(folder: Path, version: str) -> None:
    (folder / "weights").write_text(version)


def microseconds(station: Station, steps: int) -> tuple[float, float]:
    """A group, of so many steps: ours and the server's."""
    meter = station.meter
    ours, servers = meter.ours, meter.servers
    for _ in range(steps):
        station.step()
    groups = steps * BATCH
    return (meter.ours - ours) / groups * 1e6, (meter.servers - servers) / groups * 1e6
