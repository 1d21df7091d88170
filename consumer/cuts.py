"""The cut through the books that a checkpoint is made of.

Invariant: the cut of a step is of a moment after its commit and before the next one's, and everything that has become
final since is made final in it as well; so a checkpoint made of it opens no ticket again that an older one has settled.
None is taken that nobody asks for: it goes through everything in play. Refuses to know who makes a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.cut import Cut
from broker.errors import Behind
from broker.ledger import Entry, Ledger


class Cuts:
    """That of the step which somebody has asked to keep."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._newest, self._kept = -1, -1
        self._cut: Cut | None = None

    def committed(self, step: int) -> None:
        """The step was just committed. Raises `Behind` if its cut was asked for and Redis holds less than that."""
        self._newest = step
        if step == self._kept:
            self._cut = self._taken()

    def keep(self, step: int) -> None:
        """The cut of this step, the newest committed or about to be, will be asked for. Raises `Behind`."""
        self._kept = step
        self._cut = self._taken() if step == self._newest else None

    def of(self, step: int) -> Cut | None:
        """That of `step`, if it is kept or can still be taken. Raises `Behind`."""
        if step != self._kept and step == self._newest:
            self.keep(step)
        return self._cut if step == self._kept else None

    def final(self, tickets: Sequence[str], sequence: int) -> None:
        """The checkpoint numbered `sequence` has made these tickets final."""
        if self._cut is not None:
            self._cut = self._cut.trained(tickets, sequence)

    def named_versions(self, journal: Iterable[Entry]) -> set[int]:
        """What its open tickets ask for: a checkpoint that is made of it needs these versions."""
        if self._cut is None:
            return set()
        trained = [t for entry in journal if entry.step <= self._kept for t in entry.tickets]
        return set(self._cut.trained(trained, 0).named_versions())

    def _taken(self) -> Cut:
        commits = self._ledger.fence.mark.commits
        cut = self._ledger.cut()  # of the last commit, or of a later one of the evaluations' books
        if cut.mark.commits < commits:
            raise Behind("Redis has lost what it had just acknowledged")
        return cut
