"""The tickets that are in no batch yet, in order of issue, and how many of them ask for which version.

Invariant: what is counted is what is lined up, whatever came and went in between; so that rule W is asked of a few
counts, not of every ticket in play. Refuses to know which groups have arrived, and locks: Dispatch has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count


class Lineup(Mapping[str, int]):
    """ticket_id → min_policy_version."""

    def __init__(self, tickets: Mapping[str, int] | None = None) -> None:
        self._minima = dict[str, int]()
        self._places = dict[str, int]()
        self._counts = Counter[int]()
        self._next = count()
        for ticket_id, minimum in (tickets or {}).items():
            self.add(ticket_id, minimum)

    @staticmethod
    def of(tickets: Mapping[str, int]) -> Lineup:
        """Itself, if it is one."""
        return tickets if isinstance(tickets, Lineup) else Lineup(tickets)

    def __getitem__(self, ticket_id: str) -> int:
        return self._minima[ticket_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._minima)

    def __len__(self) -> int:
        return len(self._minima)

    def add(self, ticket_id: str, minimum: int) -> None:
        """The last one."""
        self._minima[ticket_id] = minimum
        self._places[ticket_id] = next(self._next)
        self._counts[minimum] += 1

    def remove(self, ticket_id: str) -> None:
        """It is in a batch, or has its verdict. Raises `KeyError` if it is not here."""
        minimum = self._minima.pop(ticket_id)
        del self._places[ticket_id]
        self._counts[minimum] -= 1
        if not self._counts[minimum]:
            del self._counts[minimum]

    def place(self, ticket_id: str) -> int:
        """Grows in order of issue. Raises `KeyError`."""
        return self._places[ticket_id]

    def counts(self) -> list[tuple[int, int]]:
        """Versions asked for, the oldest first, and by how many."""
        return sorted(self._counts.items())
