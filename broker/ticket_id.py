"""What the id of a train ticket says: its number and the problem it asks for.

Invariant: ids sort in order of issue, and everything a ticket asks for follows from its id and the run's settings, so
that tickets which Redis has lost are made anew from their ids. Refuses to know why this problem was drawn, and seeds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from broker.errors import Malformed

REMEMBERED = 16384  # ids whose meaning is looked up: some courses ask for all in play at each commit
_SHAPE = re.compile(r"t([0-9]{10})p([0-9]{10})")


@dataclass(frozen=True)
class TicketId:
    """`t0000000123p0000000045`: the ticket numbered 123, which asks for problem 45."""

    number: int
    problem: int

    def __str__(self) -> str:
        return f"t{self.number:010d}p{self.problem:010d}"

    @staticmethod
    @lru_cache(maxsize=REMEMBERED)
    def parse(text: str) -> TicketId:
        """The reverse of `str`. Raises `Malformed`."""
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise Malformed("not the id of a train ticket")
        number, problem = match.groups()
        return TicketId(int(number), int(problem))
