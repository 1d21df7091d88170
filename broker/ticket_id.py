"""What the id of a train ticket says: its number and, of one that was issued again, whose problem it repeats.

Invariant: ids sort in order of issue, and everything a ticket asks for follows from its id and the run's settings, so
that tickets which Redis has lost are made anew from their ids. Refuses to know problems and seeds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from broker.errors import Malformed

_SHAPE = re.compile(r"t([0-9]{10})(?:r([0-9]{10}))?")


@dataclass(frozen=True)
class TicketId:
    """`t0000000123`, or `t0000000123r0000000045`: the ticket numbered 123, with the problem of number 45."""

    number: int
    repeats: int | None = None

    def __str__(self) -> str:
        repeats = "" if self.repeats is None else f"r{self.repeats:010d}"
        return f"t{self.number:010d}{repeats}"

    @property
    def origin(self) -> int:
        """The number whose problem it asks for: never that of a repetition."""
        return self.number if self.repeats is None else self.repeats

    @staticmethod
    def parse(text: str) -> TicketId:
        """The reverse of `str`. Raises `Malformed`."""
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise Malformed("not the id of a train ticket")
        number, repeats = match.groups()
        return TicketId(int(number), None if repeats is None else int(repeats))
