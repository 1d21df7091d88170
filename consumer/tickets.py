"""What a train ticket asks for.

Invariant: a ticket is a function of its id, of the version it was issued at and of the run's settings, for ever: a
resumed run issues old tickets again as they were. Refuses to know when one is issued.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

import structlog

from broker.card import PartCard
from broker.errors import Malformed
from broker.schema import Ticket
from broker.ticket_id import TicketId
from consumer.choice import Course
from consumer.curriculum import Curriculum

log = structlog.get_logger("learner")


def seed_of(seed: int, number: int) -> int:
    """The sampling seed of a ticket, 31 bits, a function of the run's seed and the ticket's number alone."""
    return int.from_bytes(blake2b(b"%d %d" % (seed, number), digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True)
class Flow:
    """The numbers that govern the flow of train tickets."""

    capacity: int
    groups_per_step: int
    total_groups: int
    problems: int
    seed: int
    parts: tuple[PartCard, ...] = ()  # of the problems; none: they are all of one kind
    course: Course = field(default_factory=Course)

    def ticket(self, ticket_id: str, min_policy_version: int) -> Ticket:
        """The ticket of that id, with a seed of its own also where its problem was asked for before."""
        named = TicketId.parse(ticket_id)
        return Ticket(ticket_id, named.problem, seed_of(self.seed, named.number), min_policy_version)

    def requested(self, request: str, issued: int) -> int | None:
        """The problem of the ticket that is asked for again; None where there never was such a ticket."""
        try:
            asked = TicketId.parse(request)
        except Malformed:
            asked = None
        if asked is None or asked.number >= issued or asked.problem >= self.problems:
            log.warning("no such ticket can be issued again", ticket=request)
            return None
        return asked.problem

    def curriculum(self) -> Curriculum:
        """At its beginning."""
        return Curriculum(self.seed, self.parts or (PartCard("all", self.problems),), self.course)
