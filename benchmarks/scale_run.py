"""One learner and its generators in virtual time, and how long the learner was idle beside the least it could be.

Invariant: what was measured and its floors are of the same group times in the same order; a run with a group beyond the
bound or dropped, or with books that do not balance, ends in an error. Refuses to know how runs are shown.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import redis

from benchmarks.scale_floor import Sides, floor
from benchmarks.scale_times import DISTRIBUTIONS, Floats
from benchmarks.virtual_fleet import Fleet
from benchmarks.virtual_learner import VirtualLearner
from benchmarks.virtual_load import Shape
from benchmarks.virtual_run import MEMORY
from benchmarks.virtual_time import Agenda
from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.settings import BrokerSettings
from consumer.buffer import Order

KEYS = Keys("scale")


@dataclass(frozen=True)
class Job:
    """A run to be made. Generators together are as fast as the learner: a slot for each group of a step."""

    times: str  # of DISTRIBUTIONS, so that a job can be sent to another process
    depth: int
    bound: int
    order: Order = "ready"
    generators: int = 4
    slots: int = 8
    steps: int = 200
    seed: int = 1

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.times}, {self.order}, depth {self.depth}, bound {self.bound}, {self.generators} generators"

    @property
    def shape(self) -> Shape:
        """Nothing but groups and steps takes time, and no group is degenerate."""
        return Shape(
            slots=self.slots,
            groups_per_step=self.generators * self.slots,
            pipeline_depth=self.depth,
            max_staleness=self.bound,
            degenerate=0.0,
            publication_seconds=0.0,
            refresh_seconds=0.0,
            checkpoint_every=10,
        )

    @property
    def sides(self) -> Sides:
        """For the floor."""
        slots = self.generators * self.slots
        return Sides(slots, slots, self.depth, self.bound)


@dataclass(frozen=True)
class Outcome:
    """What came of it. `idle`: of the learner, and of generators' slots, shares of the time from start to end."""

    job: Job
    idle: float
    promised: float  # floors
    told: float
    any: float
    staleness: float  # mean
    stalest: int
    slots_idle: float
    groups_a_step: float  # trained, in the time of a step
    seconds: float  # real ones


@contextmanager
def server() -> Iterator[tuple[EmbeddedServer, redis.Redis]]:
    """A Redis of one's own on a unix socket, in memory where there is a file system for that."""
    memory = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=memory) as folder,
        EmbeddedServer(Path(folder), unix_socket=True) as started,
        connect(BrokerSettings(), started.url) as client,
    ):
        yield started, client


def played(job: Job) -> Outcome:
    """One run, on a Redis of its own."""
    began = time.perf_counter()
    with server() as (_, client), tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        found = _outcome(job, *play(client, Path(folder), job), began)
    print(f"{job.name} ({found.seconds:.0f} s)", file=sys.stderr, flush=True)
    return found


def times_of(job: Job) -> Floats:
    """(groups,) of as many groups as can be issued."""
    groups = job.sides.capacity + job.steps * job.sides.groups_per_step
    return DISTRIBUTIONS[job.times]().draw(np.random.default_rng(job.seed), groups)


def play(client: redis.Redis, folder: Path, job: Job) -> tuple[VirtualLearner, float]:
    """The learner after its last step, and how long all slots together have been busy."""
    agenda, times, begun = Agenda(), iter(times_of(job)), list[tuple[float, float]]()

    def sample() -> float:
        begun.append((agenda.now, float(next(times))))
        return begun[-1][1]

    learner = VirtualLearner(
        client, KEYS, folder, job.shape, agenda, lambda: 1.0, lambda: fleet.serve(), order=job.order
    )
    chance = np.random.default_rng(job.seed)
    of = (job.shape, agenda, chance, sample, learner.poll, learner.published)
    fleet = Fleet(client, KEYS, *of, look_seconds=None)  # nobody is lost
    fleet.scale(job.generators, warm=True)
    while learner.step < job.steps:
        agenda.next()
    return learner, sum(min(seconds, agenda.now - began) for began, seconds in begun)


def _outcome(job: Job, learner: VirtualLearner, busy: float, began: float) -> Outcome:
    now, balance = learner.agenda.now, learner.dispatch.ledger.balance()
    trained = learner.step * job.shape.groups_per_step
    ages = learner.staleness[:trained]  # without the batch that was begun last
    assert balance.balanced, sorted(balance.astray)
    assert max(ages) <= job.bound, "a token beyond the bound was trained on"
    assert learner.verdicts["stale"] == 0, "a group went stale and was dropped"
    floors = {knows: floor(times_of(job), job.sides, job.steps, knows) for knows in ("promised", "told", "any")}
    return Outcome(
        job,
        idle=1.0 - learner.step / now,
        staleness=fmean(ages),
        stalest=max(ages),
        slots_idle=1.0 - busy / (now * job.generators * job.slots),
        groups_a_step=trained / now,
        seconds=time.perf_counter() - began,
        **floors,
    )
