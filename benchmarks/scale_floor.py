"""How little a learner can be idle: lower bounds for every scheduler, computed without a line of the pipeline's code.

A batch of B groups takes one step of time T = 1; N slots sample groups, whose times X are independent of each other and
unknown until they are over; at most C = (depth + 1)·B tickets are in play, and a publication frees the B of its batch.
Tickets, numbered j = 0, 1, … in their order, take the X in that order: with times alike and unknown no other order is
better in the mean. Batch n is trained at version n. With σ_n its beginning, P_n = σ_(n−1) + 1 the publication before it
(P_0 = 0), s_j and A_j = s_j + X_j the beginning and the arrival of group j, in *every* schedule

    s_j ≥ P_(m_j), where m_j = 0 for j < C, else ⌊(j − C)/B⌋ + 1    credit: ticket j is issued with version m_j
    s_j ≥ the (j − N + 1)th end of a group                          slots
    σ_n ≥ P_n                                                       one step after the other
    σ_n ≥ the ((n + 1)·B)th arrival                                 so many groups are in the first n + 1 batches
    σ_n ≥ A_j for every j that can wait no longer                   the bound S

and taking "=" the largest of the right sides bounds them all from below, one after the other: every right side grows
with what was computed before it. Idle is what is left of P_n besides n steps. What can wait no longer is a matter of
what a scheduler knows and may do:

`promised`: all with m_j ≤ n − S. Nobody but its generator knows when a group is begun, and one begun as soon as it was
issued holds tokens of version m_j, which batch n is the last to take. So no scheduler to which tickets are issued as
their credit is freed, and which must never drop a group, has less idle. **This is the floor of the tables.** Depth 0
needs no simulation: all B of a batch are issued at its publication, so idle is E[max of B]/(E[max of B] + 1).

`told`: all that had begun at a version ≤ n − S: for a scheduler that is told at once when a group is begun. Generators
never wait while there is a ticket. Not a bound for those that would let them wait.

`any`: all j < (n − S + 1)·B. Group j begins at version ⌊j/B⌋ at the latest, or there would be too few for the batches
up to there; so this bounds even schedulers that issue tickets late and hold generators back, which none can do for
every group without making it late: there may be none that reaches it.

Invariant: for the same X no schedule that a bound speaks of has less idle. Refuses to know the pipeline.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal

from benchmarks.scale_times import Floats, Times

Knows = Literal["promised", "told", "any"]


@dataclass(frozen=True)
class Sides:
    """What a schedule has to keep to."""

    groups_per_step: int
    slots: int  # of all generators
    depth: int
    bound: int

    @property
    def capacity(self) -> int:
        """Tickets in play, at most."""
        return (self.depth + 1) * self.groups_per_step

    def promised(self, batch: int) -> int:
        """So many tickets ask for a version that this batch is the last to take, or for an older one."""
        due = batch - self.bound
        return self.capacity + due * self.groups_per_step if due >= 0 else 0

    def latest(self, batch: int) -> int:
        """So many groups are begun, in any schedule, at a version that this batch is the last to take, or before."""
        return max(0, batch - self.bound + 1) * self.groups_per_step


def floor(times: Floats, sides: Sides, steps: int, knows: Knows = "promised") -> float:
    """Idle share of the learner's time over its first `steps`. `times` (groups,), of as many as can be issued."""
    published, free, begun, arrived = [0.0], [0.0] * sides.slots, list[float](), list[float]()
    latest = [0.0]  # (groups + 1,): the last arrival of the first so many
    for batch in range(steps):
        issued = sides.capacity + batch * sides.groups_per_step
        for number in range(len(begun), issued):
            credit = 0 if number < sides.capacity else (number - sides.capacity) // sides.groups_per_step + 1
            begins = max(published[credit], heapq.heappop(free))
            ends = begins + float(times[number])
            begun.append(begins)
            latest.append(max(latest[-1], ends))
            heapq.heappush(free, ends)
            insort(arrived, ends)
        due = batch - sides.bound
        last_chance = {
            "promised": sides.promised(batch),
            "told": bisect_left(begun, published[due + 1] if sides.bound else math.inf) if due >= 0 else 0,
            "any": sides.latest(batch),
        }[knows]
        enough = arrived[(batch + 1) * sides.groups_per_step - 1]
        published.append(max(published[-1], enough, latest[last_chance]) + 1.0)
    return 1.0 - steps / published[-1]


def synchronous(times: Times, groups_per_step: int) -> float:
    """The closed form of depth 0, where there is a slot for every group of a batch."""
    slowest = times.slowest(groups_per_step)
    return slowest / (slowest + 1.0)
