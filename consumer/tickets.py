"""What a train ticket asks for.

Invariant: a ticket is a function of its id, of the version it was issued at and of the run's settings, for ever: a
resumed run issues old tickets again as they were. Refuses to know when one is issued.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from broker.schema import Ticket
from broker.ticket_id import TicketId


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, problems: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, epoch]).permutation(problems)


def problem_of(seed: int, number: int, problems: int) -> int:
    """The problem of the train ticket `number`: each problem once per epoch, shuffled by seed and epoch."""
    return int(_epoch(seed, number // problems, problems)[number % problems])


def seed_of(seed: int, number: int) -> int:
    """The sampling seed of a ticket, a function of the run's seed and the ticket's number alone."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class Flow:
    """The numbers that govern the flow of train tickets."""

    capacity: int
    groups_per_step: int
    total_groups: int
    problems: int
    seed: int

    def ticket(self, ticket_id: str, min_policy_version: int) -> Ticket:
        """The ticket of that id. One that repeats another has that one's problem, and a seed of its own."""
        named = TicketId.parse(ticket_id)
        problem = problem_of(self.seed, named.origin, self.problems)
        return Ticket(ticket_id, problem, seed_of(self.seed, named.number), min_policy_version)
