"""Which tickets come next, and what the books note of it.

Invariant: every ticket is of a problem that somebody asked for again or that the curriculum chose, and nothing counts
as issued before the books have it. Refuses to know how many may be issued, and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from broker.ledger import Ledger
from broker.schema import RolloutGroup, Ticket
from broker.ticket_id import TicketId
from consumer.curriculum import Draw
from consumer.history import History
from consumer.tickets import Flow


@dataclass(frozen=True)
class Issue:
    """Tickets about to be issued, and how many requests in Redis are met, or cannot be, with them."""

    tickets: Sequence[Ticket]
    requests: int
    draw: Draw  # what else they ask for: the curriculum's choice


@dataclass(frozen=True)
class Result:
    """How a group did."""

    problem: int
    solved: int
    attempts: int

    @staticmethod
    def of(group: RolloutGroup) -> Result:
        """Its ticket says which problem it was asked for."""
        problem = TicketId.parse(group.ticket_id).problem
        return Result(problem, sum(r.solved for r in group.rollouts), len(group.rollouts))


class Issuer:
    """Of train tickets. Its caller holds the lock."""

    def __init__(self, ledger: Ledger, flow: Flow) -> None:
        self._ledger, self._flow = ledger, flow
        self.issued = 0
        self.curriculum = flow.curriculum()

    def remember(self, history: History) -> None:
        """What a checkpoint holds."""
        self.curriculum.remember(history)

    def resume(self) -> None:
        """As the books stand."""
        self.issued = self._ledger.count("issued")
        self.curriculum.resume(self._ledger.course.read())

    def result(self, group: RolloutGroup) -> tuple[Result, ...]:
        """What the choice goes by; nothing where it does not look at how groups did."""
        return (Result.of(group),) if self._flow.course.observes else ()

    def next(self, count: int, version: int, in_play: Iterable[str] = (), results: Sequence[Result] = ()) -> Issue:
        """The next `count` tickets at this version, while those `in_play` are out; these results count for the choice.

        What somebody has asked for again comes first, and takes no position of an epoch.
        """
        asked = self._ledger.requests(count) if count else []
        problems = [self._flow.requested(request, self.issued) for request in asked]
        again = [problem for problem in problems if problem is not None]
        seen = [o for r in results for o in self.curriculum.observation(r.problem, r.solved, r.attempts)]
        out = again
        if self._flow.course.avoids:
            out = [*again, *(TicketId.parse(ticket).problem for ticket in in_play)]
        draw = self.curriculum.next(count - len(again), out, seen)
        named = [TicketId(n, problem) for n, problem in enumerate([*again, *draw.problems], self.issued)]
        return Issue([self._flow.ticket(str(name), version) for name in named], len(asked), draw)

    def write(self, pipe: Any, issue: Issue) -> None:
        """Into the books."""
        self._ledger.issue(pipe, issue.tickets)
        self._ledger.meet(pipe, issue.requests)
        self._ledger.course.add(pipe, issue.draw.drawn, issue.draw.walked, issue.draw.observed)

    def wrote(self, issue: Issue) -> None:
        """The books have it."""
        self.issued += len(issue.tickets)
        self.curriculum.drew(issue.draw)

    def forget(self, pipe: Any, observed: int) -> None:
        """The first `observed` observations leave the books: a durable checkpoint holds them."""
        self._ledger.course.forget(pipe, observed)

    def forgot(self, observed: int) -> None:
        """They have left."""
        self.curriculum.memory.final(observed)
