"""What a virtual run is made of: how long things take, how much may be in play, and how many generators that needs.

Invariant: what is needed is computed from the load alone, from nothing that an autoscaler could read. Refuses to know
how a run goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

SPREAD, LONGEST = 1.0, 6.0  # sigma of the logarithm of a group's time, and where max_tokens cuts it off, in means
OCCUPANCY = 0.85  # of the slots: what is meant to be busy in the mean, so that a stock can be built up again


@dataclass(frozen=True)
class Load:
    """What the learner and the model make of things, until it changes."""

    step_seconds: float
    group_seconds: float  # mean of what is drawn; what is cut off at LONGEST means makes it a little less

    @property
    def held_seconds(self) -> float:
        """Mean time of a group, the cut counted: E[min(X, LONGEST · mean)] of a log-normal X."""
        normal, cut = NormalDist(), math.log(LONGEST) + SPREAD**2 / 2  # in units of the median
        below = math.exp(SPREAD**2 / 2) * normal.cdf(cut / SPREAD - SPREAD)
        above = math.exp(cut) * (1 - normal.cdf(cut / SPREAD))
        return self.group_seconds * (below + above) / math.exp(SPREAD**2 / 2)

    def draw(self, chance: np.random.Generator) -> float:
        """Seconds that one group takes."""
        drawn = self.group_seconds * math.exp(SPREAD * chance.standard_normal() - SPREAD**2 / 2)
        return min(drawn, LONGEST * self.group_seconds)


@dataclass(frozen=True)
class Shape:
    """What does not change within a run. Seconds are virtual."""

    slots: int = 8
    groups_per_step: int = 32
    pipeline_depth: int = 6
    max_staleness: int = 16
    degenerate: float = 0.2
    publication_seconds: float = 2.0
    refresh_seconds: float = 2.0
    checkpoint_every: int = 4
    lease_seconds: float = 60.0
    drain_seconds: float = 60.0
    cold_start: tuple[float, float] = (120.0, 240.0)

    @property
    def capacity(self) -> int:
        """Tickets in play, at most."""
        return (self.pipeline_depth + 1) * self.groups_per_step

    def offered(self, load: Load) -> float:
        """Slots that are busy if the learner never waits: groups a second, degenerate ones included, times theirs."""
        return self.groups_per_step / (1 - self.degenerate) / load.step_seconds * load.held_seconds

    def needed(self, load: Load) -> int:
        """Generators for it: offered load in slots over OCCUPANCY of the slots of a generator."""
        return math.ceil(self.offered(load) / (OCCUPANCY * self.slots))
