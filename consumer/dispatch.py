"""Dispatch: issues tickets against credit, and commits what the learner did, one MULTI at a time.

Invariant: credit is freed by the publication of a version, never before it, and a ticket's `min_policy_version` is the
version whose publication freed its credit. Trained tickets keep their credit until a version that learnt from them is
out. Refuses to know tensors, rewards and what a problem says.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.cut import Cut, Page
from broker.ledger import Entry, Ledger, Verdict
from broker.policy import PolicyStore
from broker.schema import Ticket
from broker.streams import Arrival
from consumer.buffer import Held
from consumer.cuts import Cuts
from consumer.history import History
from consumer.issuer import Issue, Issuer, Result
from consumer.lineup import Lineup
from consumer.tickets import Flow


@dataclass
class Dispatch:
    """The learner's view of every train ticket; guarded by a lock since publications commit on their own thread."""

    ledger: Ledger
    policy: PolicyStore
    flow: Flow
    version: int = -1
    trained: int = 0
    in_play: dict[str, int] = field(default_factory=dict)  # every ticket that holds credit, in order of issue
    taken: set[str] = field(default_factory=set)  # those of them that are in a batch
    lineup: Lineup = field(default_factory=Lineup)  # and those that are not
    journal: list[Entry] = field(default_factory=list)  # steps since the last durable checkpoint
    entry_ids: dict[str, bytes] = field(default_factory=dict)  # of trained groups that are not final yet
    cuts: Cuts = field(init=False)  # guarded by the lock as well
    issuer: Issuer = field(init=False)  # and this
    results: dict[str, tuple[Result, ...]] = field(default_factory=dict)  # of groups in a batch
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.cuts = Cuts(self.ledger)
        self.issuer = Issuer(self.ledger, self.flow)

    def open(self, version: int) -> None:
        """First start: point to `version` (already uploaded) and issue the first tickets."""
        with self.lock:
            self.version = version
            issue = self._next(self._credit())
            with self.ledger.transaction() as pipe:
                self.policy.point(pipe, version)
                self.ledger.mark(pipe, "policy_version", str(version))
                self.issuer.write(pipe, issue)
            self._issued(issue)

    def resume(self, version: int) -> None:
        """Read the books as they stand after a restart; `version` is the pointer's."""
        with self.lock:
            self.version = version
            self.journal = self.ledger.entries()
            since = {t for entry in self.journal for t in entry.tickets}
            held = self._unpublished()
            self.issuer.resume()
            self.trained = self.ledger.count("trained") + len(since)
            self.in_play = {t: m for t, m in self.ledger.unsettled().items() if t not in since or t in held}
            self.taken, self.entry_ids, self.results = set(held), {}, {}
            self.lineup = Lineup({t: m for t, m in self.in_play.items() if t not in self.taken})
            self.cuts.clear()
            if self.journal:
                self.cuts.committed(self.journal[-1].step)

    def refill(self) -> None:
        """Issue what credit is free: after a restart, or when the number of steps was raised."""
        with self.lock:
            issue = self._next(self._credit())
            if issue.tickets:
                with self.ledger.transaction() as pipe:
                    self.issuer.write(pipe, issue)
                self._issued(issue)

    def tickets(self, page: Page) -> list[Ticket]:
        """The open tickets of a page, as they were issued."""
        opened = page.unsettled.items()
        return [self.flow.ticket(t, value.min_policy_version) for t, value in opened]

    def adopt(self, arrival: Arrival) -> None:
        """The group of a ticket that was trained on is another entry now."""
        with self.lock:
            self.entry_ids[arrival.ticket_id] = arrival.entry_id

    def waiting(self) -> Lineup:
        """Tickets in no batch yet → min_policy_version, in order of issue, now and later: hold the lock to read it."""
        return self.lineup

    def expects(self, ticket_id: str) -> bool:
        """The ticket is in play and in no batch: a group for it is welcome."""
        with self.lock:
            return ticket_id in self.lineup

    def take(self, batch: Sequence[Held]) -> None:
        """The batch goes into training: out of the order, its credit still held."""
        with self.lock:
            for held in batch:
                self.taken.add(held.group.ticket_id)
                self.lineup.remove(held.group.ticket_id)
                self.entry_ids[held.group.ticket_id] = held.entry_id
                self.results[held.group.ticket_id] = self.issuer.result(held.group)

    def consume(self, verdicts: Sequence[tuple[Held, Verdict]]) -> None:
        """Verdicts that are final at once: settle and issue one replacement each, in one MULTI."""
        if not verdicts:
            return
        with self.lock:
            gone = [held.group.ticket_id for held, _ in verdicts]
            results = [result for held, _ in verdicts for result in self.issuer.result(held.group)]
            issue = self._next(self._credit(freed=gone), gone, results)
            with self.ledger.transaction() as pipe:
                for verdict in sorted({verdict for _, verdict in verdicts}):
                    settled = [held for held, its in verdicts if its == verdict]
                    self.ledger.settle(pipe, [(held.entry_id, held.group.ticket_id) for held in settled], verdict)
                for held in (held for held, verdict in verdicts if verdict == "failed"):
                    self.ledger.dead_letter(pipe, held.group.ticket_id, held.group.failed, b"")
                self.issuer.write(pipe, issue)
            for ticket_id in gone:
                del self.in_play[ticket_id]
                self.lineup.remove(ticket_id)
            self._issued(issue)

    def refuse(self, arrival: Arrival, reason: str) -> None:
        """The answer to a ticket cannot be read: dead letter; the ticket, if it is open, is settled as failed."""
        with self.lock:
            if not self.expects(arrival.ticket_id):
                self.discard(arrival, reason)
                return
            issue = self._next(self._credit(freed=[arrival.ticket_id]), [arrival.ticket_id])
            with self.ledger.transaction() as pipe:
                self.ledger.dead_letter(pipe, arrival.ticket_id, reason, arrival.payload)
                self.ledger.settle(pipe, [(arrival.entry_id, arrival.ticket_id)], "failed")
                self.issuer.write(pipe, issue)
            del self.in_play[arrival.ticket_id]
            self.lineup.remove(arrival.ticket_id)
            self._issued(issue)

    def discard(self, arrival: Arrival, reason: str) -> None:
        """A message that belongs to no open ticket, or repeats one that is here already: dead letter, nothing else."""
        with self.lock, self.ledger.transaction() as pipe:
            self.ledger.dead_letter(pipe, arrival.ticket_id, reason, arrival.payload)
            self.ledger.discard(pipe, arrival.entry_id)

    def commit(self, step: int, version: int, batch: Sequence[str], *, publish: bool) -> None:
        """One MULTI: the journal entry and, when publishing (weights are uploaded), pointer, freed credit, tickets."""
        with self.lock:
            if publish:
                self.ledger.fence.check()  # before the number counts as used
            entry = Entry(step, version, publish, tuple(batch))
            freed = [*self._unpublished(), *batch] if publish else []
            previous = self.version
            self.version = version if publish else previous
            try:
                credit = self._credit(freed, trained=len(batch)) if publish else 0
                issue = self._next(credit, freed, [result for t in batch for result in self.results[t]])
                with self.ledger.transaction() as pipe:
                    self.ledger.journal(pipe, entry)
                    if publish:
                        self.policy.point(pipe, version)
                    self.issuer.write(pipe, issue)
            except BaseException:
                self.version = previous
                raise
            self.journal.append(entry)
            self.trained += len(batch)
            self._issued(issue)
            for ticket_id in batch:
                del self.results[ticket_id]
            for ticket_id in freed:
                self.in_play.pop(ticket_id, None)
                self.taken.discard(ticket_id)
            self.cuts.committed(step)

    def named_versions(self) -> set[int]:
        """What open tickets ask for, now or once a checkpoint under way has to be gone back to."""
        with self.lock:
            return {*self.cuts.named_versions(self.journal), *self.in_play.values()}

    def curriculum(self) -> dict[str, Any]:
        """Where it stands, for people."""
        with self.lock:
            return self.issuer.curriculum.summary()

    def history(self, cut: Cut) -> History:
        """How groups had done when that cut was made, not older than the newest durable checkpoint's."""
        with self.lock:
            return self.issuer.curriculum.memory.at(cut.observed)

    def make_final(
        self, entries: Sequence[Entry], sequence: int, entry_ids: Mapping[str, bytes], observed: int
    ) -> None:
        """The checkpoint that holds these steps is durable: acknowledge, count and forget them, in one MULTI.

        `observed`: how many observations of groups it holds.

        Raises `ValueError` for a checkpoint between two publications: the credit of its last steps would be forgotten.
        """
        if not entries or not entries[-1].published:
            raise ValueError("a checkpoint ends with a published step")
        with self.lock:
            settled = [(entry_ids[t], t) for entry in entries for t in entry.tickets]
            again = {self.entry_ids[t] for _, t in settled if t in self.entry_ids} - {entry for entry, _ in settled}
            with self.ledger.transaction() as pipe:
                self.ledger.settle(pipe, settled, "trained")
                for entry_id in again:  # adopted while the checkpoint was being written
                    self.ledger.discard(pipe, entry_id)
                self.ledger.make_final(pipe, len(entries), sequence)
                self.issuer.forget(pipe, observed)
            self.issuer.forgot(observed)
            self.journal = self.journal[len(entries) :]
            self.cuts.final([t for _, t in settled], sequence)
            for _, ticket_id in settled:
                self.entry_ids.pop(ticket_id, None)

    def _unpublished(self) -> list[str]:
        """Trained tickets that still hold credit: no version that learnt from them is out."""
        last = max((i for i, entry in enumerate(self.journal) if entry.published), default=-1)
        return [t for entry in self.journal[last + 1 :] for t in entry.tickets]

    def _credit(self, freed: Sequence[str] = (), trained: int = 0) -> int:
        """Tickets that may be issued: up to capacity, and no more than the run still has use for."""
        gone = set(freed)
        in_play = len(self.in_play) - sum(t in self.in_play for t in gone)
        spent = self.trained + trained
        unspent = in_play - sum(t not in gone for t in self._unpublished())
        return max(0, min(self.flow.capacity - in_play, self.flow.total_groups - spent - unspent))

    def _next(self, count: int, gone: Sequence[str] = (), results: Sequence[Result] = ()) -> Issue:
        """The next `count` tickets at the present version, once these are gone and have had these results."""
        without = set(gone)
        left = (t for t in self.in_play if t not in without)  # gone through only for a course that has to
        return self.issuer.next(count, self.version, left, results)

    def _issued(self, issue: Issue) -> None:
        self.issuer.wrote(issue)
        for ticket in issue.tickets:
            self.in_play[ticket.ticket_id] = ticket.min_policy_version
            self.lineup.add(ticket.ticket_id, ticket.min_policy_version)
