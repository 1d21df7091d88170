"""The world in which the flow of tickets is tested: production Dispatch, StalenessBuffer and streams over a real Redis,
adversarial generators and a learner whose every move somebody else decides, and a clock that only moves when told.

Leases are Redis' own (time of delivery, stored with every pending entry). Virtual time passes by making every pending
entry as much older, so that what lapses is a function of stored timestamps alone and no test ever waits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis

from broker.keys import GENERATORS, Keys
from broker.ledger import Ledger
from broker.policy import PolicyStore
from broker.schema import KINDS, Rollout, RolloutGroup, VersionSpan
from broker.streams import RolloutStream, create_groups
from broker.tickets import Claim, TicketStream
from consumer.buffer import Bound, Held, StalenessBuffer, Wait
from consumer.dispatch import Dispatch
from consumer.tickets import Flow

LEASE = 3600.0  # virtual seconds: real time is nothing beside it


@dataclass(frozen=True)
class Shape:
    """What hypothesis chooses about a run."""

    order: str = "ready"
    groups_per_step: int = 2
    pipeline_depth: int = 2
    max_staleness: int = 3
    publish_every: int = 1
    steps: int = 10
    slots: int = 2
    checkpoint_every: int = 4

    @property
    def capacity(self) -> int:
        return (self.pipeline_depth + 1) * self.groups_per_step


@dataclass
class Job:
    """A ticket being sampled: `oldest` is the version that produced its first token, None before it has begun."""

    claim: Claim
    work: int
    degenerate: bool
    oldest: int | None = None


@dataclass
class VirtualGenerator:
    """A generator reduced to what the protocol sees of it."""

    stream: TicketStream
    slots: int
    version: int = 0
    jobs: list[Job] = field(default_factory=list)
    finished: list[tuple[Claim, RolloutGroup]] = field(default_factory=list)
    stalled: bool = False

    @property
    def suspects(self) -> int:
        return sum(job.claim.suspect for job in self.jobs)


def group_of(job: Job, name: str) -> RolloutGroup:
    assert job.oldest is not None
    rewards = [0.0, 0.0 if job.degenerate else 1.0]
    rollouts = tuple(
        Rollout(np.array([1], np.int32), np.zeros(1, np.float32), (VersionSpan(job.oldest, 0, 1),), r) for r in rewards
    )
    ticket = job.claim.ticket
    return RolloutGroup(ticket.ticket_id, "train", ticket.problem, np.array([1], np.int32), rollouts, generator=name)


def _fill(folder: Path, version: int) -> None:
    (folder / "weights").write_text(str(version))


class World:
    """A run. Each method is one thing that may happen; `check` holds after every one of them."""

    stream_class: type[TicketStream] = TicketStream
    dispatch_class: type[Dispatch] = Dispatch
    buffer_class: type[StalenessBuffer] = StalenessBuffer

    def __init__(self, client: redis.Redis, keys: Keys, folder: Path, shape: Shape) -> None:
        self.client, self.keys, self.shape = client, keys, shape
        create_groups(client, keys)
        ledger = Ledger(client, keys)
        ledger.fence.take_over()
        flow = Flow(shape.capacity, shape.groups_per_step, shape.steps * shape.groups_per_step, 7, 0)
        self.dispatch = self.dispatch_class(ledger, PolicyStore(client, keys, folder, 2, 60.0), flow)
        self.buffer = self.buffer_class(shape.order)  # type: ignore[arg-type]
        self.rollouts = RolloutStream(client, client, keys)
        self.generators: list[VirtualGenerator] = []
        self.step, self.version, self.steps_at_version = 0, 0, 0
        self.training: list[Held] | None = None
        self.publication: tuple[int, int, list[str]] | None = None  # trained, uploaded, not committed yet
        self.sampled: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.consumed: Counter[str] = Counter()
        self.names = 0
        self.sequence = 0
        self.upload(0)
        self.dispatch.open(0)

    def upload(self, version: int) -> None:
        self.dispatch.policy.write(version, lambda folder: _fill(folder, version))

    # -- generators -----------------------------------------------------------------------------------------------

    def join(self) -> VirtualGenerator:
        self.names += 1
        stream = self.stream_class(
            self.client, self.client, self.keys, f"g{self.names}", LEASE, 10**6, look_seconds=0.0
        )
        generator = VirtualGenerator(stream, self.shape.slots, self.dispatch.version)
        self.generators.append(generator)
        return generator

    def die(self, generator: VirtualGenerator) -> None:
        self.generators.remove(generator)

    def refresh(self, generator: VirtualGenerator) -> None:
        if not generator.stalled:
            generator.version = self.dispatch.version

    def claim(self, generator: VirtualGenerator, work: int, degenerate: bool) -> None:
        free = generator.slots - len(generator.jobs)
        if generator.stalled or free == 0:
            return
        for claim in generator.stream.claim(free, held=[job.claim for job in generator.jobs], block_seconds=0):
            self.claimed(claim)
            generator.jobs.append(Job(claim, work, degenerate))
        assert len(generator.jobs) <= generator.slots
        assert generator.suspects <= 1

    def claimed(self, claim: Claim) -> None:
        """A hook for the mutants."""

    def sample(self, generator: VirtualGenerator, which: int) -> None:
        """One unit of work on one job, in any order; a job that is done is published."""
        if generator.stalled or not generator.jobs:
            return
        job = generator.jobs[which % len(generator.jobs)]
        if job.oldest is None:
            if generator.version < job.claim.ticket.min_policy_version:
                return
            job.oldest = generator.version
        job.work -= 1
        if job.work <= 0:
            generator.jobs.remove(job)
            group = group_of(job, generator.stream.consumer)
            generator.finished.append((job.claim, group))
            self.send(generator, len(generator.finished) - 1)

    def send(self, generator: VirtualGenerator, which: int) -> None:
        """Publish, or publish once more what was published before."""
        if generator.finished and not generator.stalled:
            claim, group = generator.finished[which % len(generator.finished)]
            self.sampled[group.ticket_id] += generator.stream.publish(claim, group)

    def give_back(self, generator: VirtualGenerator) -> None:
        if generator.jobs and not generator.stalled:
            generator.stream.give_back(generator.jobs.pop().claim)

    def pass_time(self, seconds: float) -> None:
        """Time passes: whoever is awake renews; every pending ticket gets older."""
        for kind in KINDS:
            stream = self.keys.tickets(kind)
            pending: Any = self.client.xpending_range(stream, GENERATORS, "-", "+", 1000)
            for entry in pending:
                idle = int(entry["time_since_delivered"] + seconds * 1000)
                name, entry_id = entry["consumer"], entry["message_id"]
                self.client.xclaim(stream, GENERATORS, name, 0, [entry_id], idle=idle, justid=True)
        for generator in self.generators:
            if not generator.stalled:
                held = generator.stream.renew([job.claim for job in generator.jobs])
                generator.jobs = [job for job in generator.jobs if job.claim.entry_id in held]

    # -- the learner ----------------------------------------------------------------------------------------------

    def bound(self) -> Bound:
        s = self.shape
        return Bound(self.version, self.steps_at_version, s.max_staleness, s.groups_per_step, s.publish_every)

    def poll(self) -> bool:
        """Claim what has arrived and take a batch if one may be taken; True if training has begun."""
        for arrival in self.rollouts.claim(64, 0):
            if not self.dispatch.expects(arrival.ticket_id) or not self.buffer.add(arrival):
                self.dispatch.discard(arrival, "copy")
        if self.training is not None or self.step == self.shape.steps:
            return False
        if self.shape.order == "strict":
            self.land()
        verdicts = self.buffer.consumed(self.dispatch.waiting(), self.bound())
        self.dispatch.consume(verdicts)
        for held, verdict in verdicts:
            self.verdicts[verdict] += 1
            self.consumed[held.group.ticket_id] += 1
        found = self.buffer.take(self.dispatch.waiting(), self.bound())
        if isinstance(found, Wait):
            return False
        for held in found:
            assert self.version - held.group.oldest_version <= self.shape.max_staleness, (
                "a token beyond the bound was trained on"
            )
            self.consumed[held.group.ticket_id] += 1
            self.verdicts["trained"] += 1
        self.dispatch.take(found)
        self.training = found
        return True

    def finish_step(self) -> None:
        """The optimizer step is over; its publication, if due, is under way."""
        if self.training is None:
            return
        self.land()
        batch, self.training = [held.group.ticket_id for held in self.training], None
        self.step += 1
        if self.steps_at_version + 1 < self.shape.publish_every and self.step < self.shape.steps:
            self.steps_at_version += 1
            self.dispatch.commit(self.step, self.version, batch, publish=False)
            return
        self.version, self.steps_at_version = self.version + 1, 0
        self.publication = (self.step, self.version, batch)

    def land(self) -> None:
        """The publication under way is committed."""
        if self.publication is not None:
            step, version, batch = self.publication
            self.publication = None
            self.upload(version)
            self.dispatch.commit(step, version, batch, publish=True)

    def checkpoint(self) -> None:
        """Everything committed becomes final, once the publication under way is."""
        self.land()
        if self.steps_at_version == 0 and self.dispatch.journal:
            self.sequence += 1
            self.dispatch.make_final(list(self.dispatch.journal), self.sequence, self.dispatch.entry_ids, 0)

    # -- what holds ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        assert self.verdicts["stale"] == 0, "a group went stale and was dropped"
        self.credit_holds()
        self.the_line_is_what_is_in_play()
        assert max(self.consumed.values(), default=0) <= 1, "a group was consumed twice"
        balance = self.dispatch.ledger.balance()
        assert balance.balanced, balance

    def credit_holds(self) -> None:
        assert len(self.dispatch.in_play) <= self.shape.capacity, "more credit in play than capacity"

    def the_line_is_what_is_in_play(self) -> None:
        in_play, taken = self.dispatch.in_play, self.dispatch.taken
        assert list(self.dispatch.waiting().items()) == [(t, m) for t, m in in_play.items() if t not in taken]

    def complete(self) -> None:
        """From any state, with one healthy generator at hand, the run ends by itself and the books are closed."""
        self.join()
        idle = 0
        while self.step < self.shape.steps or self.publication or self.training:
            before = (self.step, self.version, sum(self.sampled.values()), self.training is None, self.dispatch.version)
            for generator in self.generators:
                generator.stalled = False
                self.refresh(generator)
                self.claim(generator, 1, False)
                for _ in range(len(generator.jobs)):
                    self.sample(generator, 0)
            self.poll()
            self.finish_step()
            self.land()
            self.check()
            after = (self.step, self.version, sum(self.sampled.values()), self.training is None, self.dispatch.version)
            idle = idle + 1 if before == after else 0
            if idle > 2:
                self.pass_time(LEASE + 1)
            assert idle < 60, f"deadlock at step {self.step}: waiting for {self.dispatch.waiting()}"
        self.checkpoint()
        self.check()
        assert set(self.sampled.values()) <= {1}
        assert self.sampled == self.consumed, "what was sampled is not what was consumed"
        balance = self.dispatch.ledger.balance()
        assert not balance.unsettled
        assert balance.verdicts.get("trained") == self.shape.steps * self.shape.groups_per_step
