"""A whole run in virtual time: learner, generators, the scrapes of a Prometheus and an autoscaler, from one seed.

Invariant: the books balance at every scrape. Refuses to know what is to be shown with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import redis

from benchmarks.autoscaler import INTERVAL, Autoscaler, Scrape
from benchmarks.virtual_fleet import Fleet
from benchmarks.virtual_learner import VirtualLearner
from benchmarks.virtual_load import Load, Shape
from benchmarks.virtual_time import Agenda
from broker.keys import Keys
from broker.ledger import Balance

MEMORY = Path("/dev/shm")  # so that no disk is waited for


@dataclass(frozen=True)
class Sight:
    """What somebody who knows everything sees at a scrape."""

    time: float  # seconds
    needed: int
    replicas: int  # wanted by the autoscaler
    up: int
    waited: float  # seconds that the learner has been without a batch, all in all
    staleness: tuple[int, ...]  # of the groups trained on since the last sight
    claimed: int
    waiting: int


@dataclass
class Run:
    """Things change as its `agenda` says. `scaler` None: the number of generators is fixed."""

    client: redis.Redis
    keys: Keys
    shape: Shape
    load: Load
    scaler: Autoscaler | None = None
    seed: int = 0
    agenda: Agenda = field(default_factory=Agenda)
    scrapes: list[Scrape] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)

    def at(self, time: float, happen: Callable[[Run], object]) -> None:
        """Plan a change."""
        self.agenda.at(time, lambda: happen(self))

    def meet(self, load: Load) -> None:
        """From now on things take other times."""
        self.load = load

    def play(self, until: float, replicas: int = 1) -> None:
        """From `replicas` generators that are up, to the end, after which everything trained on is final."""
        chance = np.random.default_rng(self.seed)
        folder = MEMORY if MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(dir=folder) as policy:
            self.learner = VirtualLearner(
                self.client,
                self.keys,
                Path(policy),
                self.shape,
                self.agenda,
                lambda: self.load.step_seconds * chance.uniform(0.9, 1.1),
                lambda: self.fleet.serve(),
            )
            self.fleet = Fleet(
                self.client,
                self.keys,
                self.shape,
                self.agenda,
                chance,
                lambda: self.load.draw(chance),
                self.learner.poll,
                self.learner.published,
            )
            self.fleet.scale(replicas, warm=True)
            self.agenda.every(INTERVAL, self._scrape)
            if self.scaler is not None:
                self.agenda.every(self.scaler.interval, self._control)
            self.agenda.run(until)
            self.learner.checkpoint()

    def balance(self) -> Balance:
        """The books. Raises `AssertionError` where they do not balance."""
        balance = self.learner.dispatch.ledger.balance()
        if not balance.balanced:
            raise AssertionError(f"the books do not balance: {sorted(balance.astray)}")
        return balance

    def _scrape(self) -> None:
        balance, now = self.balance(), self.agenda.now
        claimed, waiting, waited = len(balance.claimed), len(balance.waiting), self.learner.waited_until_now
        self.scrapes.append(Scrape(now, claimed, waiting, waited))
        replicas, up = len(self.fleet.replicas), len(self.fleet.up)
        staleness = tuple(self.learner.staleness)
        self.learner.staleness.clear()
        needed = self.shape.needed(self.load)
        self.sights.append(Sight(now, needed, replicas, up, waited, staleness, claimed, waiting))

    def _control(self) -> None:
        assert self.scaler is not None
        self.fleet.scale(self.scaler.decide(self.scrapes, self.agenda.now, len(self.fleet.replicas)))


def between(sights: Sequence[Sight], since: float, until: float) -> Sequence[Sight]:
    """Those of a while, seconds."""
    return [sight for sight in sights if since <= sight.time < until]
