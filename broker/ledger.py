"""Who owes what: every ticket that was issued, and the one verdict it reaches.

Invariant: `issued = Σ verdicts + outstanding`, because every change is one MULTI that moves a ticket from one side to
the other. Refuses to know why a verdict was given, and what a group holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import redis

from broker.coursebook import Coursebook
from broker.cut import Cut, Open, Page
from broker.documents import read_json
from broker.errors import Malformed, Refused
from broker.fence import Fence, Mark
from broker.keys import GENERATORS, LEARNER, Keys
from broker.schema import Kind, Ticket, encode_ticket
from broker.scripts import DEAD_LETTER, LOCATE

Verdict = Literal["trained", "degenerate", "stale", "failed", "evaluated"]
VERDICTS: tuple[Verdict, ...] = ("trained", "degenerate", "stale", "failed", "evaluated")
# An audit log that strangers can write to: what is kept of each dead letter (characters, bytes), and of how many.
DEAD_LETTER_ID, DEAD_LETTER_REASON, DEAD_LETTER_BYTES, DEAD_LETTERS = 64, 1024, 4096, 1000


@dataclass(frozen=True)
class Entry:
    """One committed step: `version` is the learner's after it, `published` whether the pointer moved to it."""

    step: int
    version: int
    published: bool
    tickets: tuple[str, ...]

    def encode(self) -> str:
        """As JSON."""
        return json.dumps([self.step, self.version, self.published, list(self.tickets)])

    @staticmethod
    def decode(raw: bytes | str) -> Entry:
        """From JSON. Raises `Malformed`."""
        entry = read_json(raw)
        if not (isinstance(entry, list) and [type(part) for part in entry] == [int, int, bool, list]):
            raise Malformed("not an entry of a journal")
        step, version, published, tickets = entry
        if min(step, version) < 0 or not all(isinstance(ticket, str) for ticket in tickets):
            raise Malformed("an entry of a journal with numbers or tickets that cannot be")
        return Entry(step, version, published, tuple(tickets))


@dataclass(frozen=True)
class Balance:
    """The ledger of one kind, read in one MULTI, beside the places where its tickets were found at that moment."""

    issued: int
    verdicts: dict[Verdict, int]
    unsettled: frozenset[str]
    waiting: frozenset[str]  # in the ticket stream, claimed by nobody
    claimed: frozenset[str]  # in a generator's hands
    published: frozenset[str]  # in the rollout stream: groups without a verdict, and trained ones that are not final
    oldest: float | None = None  # when the oldest unsettled ticket was issued, seconds since the epoch

    @property
    def located(self) -> frozenset[str]:
        """Every ticket that was found."""
        return self.waiting | self.claimed | self.published

    @property
    def astray(self) -> frozenset[str]:
        """Unsettled and nowhere, or somewhere and settled."""
        return self.unsettled ^ self.located

    @property
    def balanced(self) -> bool:
        """Counts add up, and what is unsettled is just what can be found in the streams."""
        return self.issued == sum(self.verdicts.values()) + len(self.unsettled) and not self.astray


class Ledger:
    """The books of one kind of ticket. Only the learner writes them, behind its fence."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        kind: Kind = "train",
        fence: Fence | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._keys, self.kind, self._clock = client, keys, kind, clock
        self._books, self._unsettled = keys.ledger(kind), keys.unsettled(kind)
        self.fence = fence or Fence(client, keys)
        self.course = Coursebook(client, keys)

    @contextmanager
    def transaction(self, known: Mark | None = None) -> Iterator[Any]:
        """One MULTI, exactly once. Raises `Fenced` if another learner has taken over, `Behind` if Redis lost data.

        `known`: see `Fence.execute`.
        """
        pipe: Any = self._client.pipeline(transaction=True)  # only collects: the fence executes
        yield pipe
        self.fence.execute(pipe.command_stack, known)

    def issue(self, pipe: Any, tickets: Sequence[Ticket]) -> None:
        """Add tickets to the stream and to the books."""
        now = self._clock()
        if tickets:
            self._open(pipe, dict.fromkeys(tickets, now))
            pipe.hincrby(self._books, "issued", len(tickets))

    def requests(self, count: int) -> list[str]:
        """Ids of tickets whose problems somebody wants issued again (`make dead-letters`), at most `count`."""
        raw: Any = self._client.lrange(self._keys.requeue, 0, count - 1)
        return [request.decode("utf-8", "replace") for request in raw]

    def meet(self, pipe: Any, count: int) -> None:
        """So many of them, the oldest, are met. Others only add to the end, so these are the ones that were read."""
        if count:
            pipe.ltrim(self._keys.requeue, count, -1)

    def rewrite(self, pipe: Any, page: Page, tickets: Sequence[Ticket]) -> None:
        """Begin the books and streams of this kind anew from `page`, whose open tickets are `tickets`."""
        for stream, group in self._keys.streams(self.kind).values():
            pipe.delete(stream)
            pipe.xgroup_create(stream, group, id="0", mkstream=True)
        pipe.delete(self._books, self._unsettled, *(self._keys.since_checkpoint() if self.kind == "train" else []))
        if page.counters:
            pipe.hset(self._books, mapping=dict(page.counters))
        if tickets:
            self._open(pipe, {ticket: page.unsettled[ticket.ticket_id].issued_at for ticket in tickets})

    def _open(self, pipe: Any, issued_at: Mapping[Ticket, float]) -> None:
        opened = {t.ticket_id: Open(t.min_policy_version, at).encode() for t, at in issued_at.items()}
        pipe.hset(self._unsettled, mapping=opened)
        for ticket in issued_at:
            pipe.xadd(self._keys.tickets(self.kind), {"ticket_id": ticket.ticket_id, "payload": encode_ticket(ticket)})

    def cut(self) -> Cut:
        """The books of all kinds as they are now."""
        return self.fence.patience(lambda: Cut.take(self._client, self._keys))

    def settle(self, pipe: Any, entries: Sequence[tuple[bytes, str]], verdict: Verdict) -> None:
        """Final verdict over `(entry_id, ticket_id)`: acknowledge, trim, count, drop from `unsettled`."""
        if not entries:
            return
        stream = self._keys.rollouts(self.kind)
        pipe.xack(stream, LEARNER, *[entry_id for entry_id, _ in entries])
        pipe.xdel(stream, *[entry_id for entry_id, _ in entries])
        pipe.hdel(self._unsettled, *[ticket_id for _, ticket_id in entries])
        pipe.hincrby(self._books, verdict, len(entries))

    def discard(self, pipe: Any, entry_id: bytes) -> None:
        """Drop an entry that belongs to no unsettled ticket: a stranger's, or a copy."""
        pipe.xack(self._keys.rollouts(self.kind), LEARNER, entry_id)
        pipe.xdel(self._keys.rollouts(self.kind), entry_id)

    def dead_letter(self, pipe: Any, ticket_id: str, reason: str, payload: bytes) -> None:
        """Keep what failed or could not be read, with its reason; the oldest gives way beyond `DEAD_LETTERS`."""
        keys = (self._keys.dead_letters, self._keys.dead_letters_dropped)
        shown = (ticket_id[:DEAD_LETTER_ID], reason[:DEAD_LETTER_REASON], payload[:DEAD_LETTER_BYTES])
        pipe.eval(DEAD_LETTER, len(keys), *keys, DEAD_LETTERS, self.kind, *shown)

    def journal(self, pipe: Any, entry: Entry) -> None:
        """Name the batch of a committed step, so that a restarted learner can repeat it."""
        pipe.rpush(self._keys.journal, entry.encode())
        pipe.hset(self._books, mapping={"step": entry.step, "policy_version": entry.version})

    def make_final(self, pipe: Any, steps: int, sequence: int) -> None:
        """Drop the oldest `steps` journal entries: the durable checkpoint numbered `sequence` holds them."""
        pipe.ltrim(self._keys.journal, steps, -1)
        pipe.hset(self._books, "sequence", sequence)

    def mark(self, pipe: Any, field: str, value: str) -> None:
        """Note a fact beside the counters."""
        pipe.hset(self._books, field, value)

    def books(self) -> dict[str, str]:
        """Every counter and mark."""
        raw: Any = self._client.hgetall(self._books)
        return {k.decode(): v.decode() for k, v in raw.items()}

    def count(self, name: str) -> int:
        """One counter; 0 if it was never set."""
        return int(self.books().get(name, 0))

    def verdicts(self) -> dict[Verdict, int]:
        """How many tickets have met which verdict."""
        return _verdicts(self.books())

    def unsettled(self) -> dict[str, int]:
        """ticket_id → min_policy_version of every ticket without a final verdict, in order of issue."""
        raw: Any = self._client.hgetall(self._unsettled)
        return {k.decode(): Open.decode(v).min_policy_version for k, v in sorted(raw.items())}

    def entries(self) -> list[Entry]:
        """Steps committed since the last durable checkpoint, oldest first. Raises `Refused`."""
        raw: Any = self._client.lrange(self._keys.journal, 0, -1)
        try:
            return [Entry.decode(item) for item in raw]
        except Malformed as error:
            cause = f"the journal of run {self._keys.run} in Redis cannot be read ({error})"
            raise Refused(cause, "choose another run.name, or bring Redis' data back") from None

    def balance(self) -> Balance:
        """The books beside where each unsettled ticket actually is: in the ticket stream or in the rollout stream.

        Groups trained since the last checkpoint are still in the rollout stream, so these two places are all there are.
        """
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._books)
            pipe.hgetall(self._unsettled)
            pipe.eval(LOCATE, 2, self._keys.tickets(self.kind), self._keys.rollouts(self.kind), GENERATORS)
            books, unsettled, places = pipe.execute()
        named = {name.decode(): count.decode() for name, count in books.items()}
        waiting, claimed, published = (frozenset(t.decode("utf-8", "replace") for t in place) for place in places)
        oldest = min((Open.decode(v).issued_at for v in unsettled.values()), default=None)
        ids = frozenset(k.decode() for k in unsettled)
        return Balance(int(named.get("issued", 0)), _verdicts(named), ids, waiting, claimed, published, oldest)


def _verdicts(books: dict[str, str]) -> dict[Verdict, int]:
    return {verdict: int(books[verdict]) for verdict in VERDICTS if verdict in books}
