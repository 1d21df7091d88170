"""The cuts through the books that a checkpoint may be made of.

Invariant: a cut that is kept is that of its step's commit, with everything that has become final since made final in it
as well; so a checkpoint made of it opens no ticket again that an older one has settled. Refuses to know who makes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.cut import Cut
from broker.errors import Behind
from broker.ledger import Entry, Ledger


class Cuts:
    """That of the newest commit, and that of one other step which somebody has asked to keep."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._kept = ledger, -1
        self._cuts: dict[int, Cut] = {}

    def take(self, step: int) -> None:
        """The step was just committed. Raises `Behind` if Redis holds less than that."""
        commits = self._ledger.fence.mark.commits
        cut = self._ledger.cut()  # of this commit, or of a later one of the evaluations' books
        if cut.mark.commits < commits:
            raise Behind("Redis has lost what it had just acknowledged")
        self._cuts = {number: old for number, old in self._cuts.items() if number == self._kept} | {step: cut}

    def keep(self, step: int) -> None:
        """The cut of this step, the newest committed or about to be, will be asked for."""
        self._kept = step

    def of(self, step: int) -> Cut | None:
        """That of `step`, if it is here."""
        return self._cuts.get(step)

    def clear(self) -> None:
        """Begin anew."""
        self._cuts = {}

    def final(self, tickets: Sequence[str], sequence: int) -> None:
        """The checkpoint numbered `sequence` has made these tickets final."""
        self._cuts = {step: cut.trained(tickets, sequence) for step, cut in self._cuts.items()}

    def named_versions(self, journal: Iterable[Entry]) -> set[int]:
        """What their open tickets ask for: a checkpoint that is made of one needs these versions."""
        named, entries = set[int](), list(journal)
        for step, cut in self._cuts.items():
            trained = [t for entry in entries if entry.step <= step for t in entry.tickets]
            named |= cut.trained(trained, 0).named_versions()
        return named
