"""Arrived groups by their places in the order of issue and by their ages, so that none is looked at twice for nothing.

Invariant: each group is handed out to be judged once when it is new, and once more when the version has come at which
its oldest token is beyond the bound. Refuses to know groups: it is told names and versions.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort

from consumer.lineup import Lineup


class Shelf:
    """Of one buffer."""

    def __init__(self) -> None:
        self._line = Lineup()  # in which the places are
        self._new = dict[str, None]()  # not placed yet
        self._placed = list[tuple[int, str]]()  # (place, ticket_id), in order
        self._places = dict[str, int]()
        self._unjudged = dict[str, None]()
        self._ages = list[tuple[int, str]]()  # a heap of (oldest version, ticket_id); some of them gone

    def add(self, ticket_id: str) -> None:
        """It has arrived."""
        self._new[ticket_id] = self._unjudged[ticket_id] = None

    def remove(self, ticket_id: str) -> None:
        """It goes, if it is here."""
        self._new.pop(ticket_id, None)
        self._unjudged.pop(ticket_id, None)
        place = self._places.pop(ticket_id, None)
        if place is not None:
            del self._placed[bisect_left(self._placed, (place, ticket_id))]

    def good(self, ticket_id: str, oldest_version: int) -> None:
        """It was judged, and stays until the bound has passed that version."""
        self._unjudged.pop(ticket_id, None)
        heapq.heappush(self._ages, (oldest_version, ticket_id))

    def to_judge(self, line: Lineup, oldest_version: int) -> list[str]:
        """Those in `line` to be judged now, in order: the new ones, and those with a token older than that."""
        self._place(line)
        while self._ages and self._ages[0][0] < oldest_version:
            _, ticket_id = heapq.heappop(self._ages)
            if ticket_id in self._places or ticket_id in self._new:
                self._unjudged[ticket_id] = None
        return sorted((t for t in self._unjudged if t in self._places), key=self._places.__getitem__)

    def oldest(self, line: Lineup, count: int) -> list[str]:
        """The first so many in `line`, or as many as there are."""
        self._place(line)
        return [ticket_id for _, ticket_id in self._placed[:count]]

    def _place(self, line: Lineup) -> None:
        if line is not self._line:  # another one: all places are others
            self._new = dict.fromkeys([*self._places, *self._new])
            self._line, self._placed, self._places = line, [], {}
        for ticket_id in [t for t in self._new if t in line]:
            del self._new[ticket_id]
            self._places[ticket_id] = line.place(ticket_id)
            insort(self._placed, (self._places[ticket_id], ticket_id))
