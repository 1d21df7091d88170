"""Tickets on their Redis stream, the generators' end: claim, renew, publish, give back, reclaim.

Invariant: a group enters the rollout stream only in the same server-side step that acknowledges its ticket, so each
ticket yields one group whoever was slow, dead or sent twice. Refuses to know verdicts: settling is the ledger's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from broker import scripts
from broker.decoding import decode_ticket
from broker.errors import Malformed
from broker.keys import GENERATORS, Keys
from broker.patience import Patience
from broker.schema import KINDS, Kind, RolloutGroup, Ticket, tombstone
from broker.streams import added_at, by_stream, create_groups, no_group

RETURNED = "returned"  # consumer name under which tickets that were handed back wait for anyone
LOOKS = 4  # for lapsed tickets, in the time of a lease: to look means to go through all that are in anybody's hands
TOGETHER_BYTES = 1 << 20  # of groups in one step of the server, which does nothing else meanwhile


@dataclass(frozen=True)
class Claim:
    """A ticket in a generator's hands."""

    entry_id: bytes
    ticket: Ticket
    deliveries: int

    @property
    def suspect(self) -> bool:
        """Its earlier owner fell silent: perhaps it was the ticket's fault."""
        return self.deliveries >= 2

    @property
    def issued_at(self) -> float:
        """When its entry was added, seconds since the epoch by Redis' clock: issued, or issued again after a loss."""
        return added_at(self.entry_id)


class TicketStream:
    """The generator's end. Not shared between threads: `blocking` is in use while `claim` waits."""

    def __init__(
        self,
        client: redis.Redis,
        blocking: redis.Redis,
        keys: Keys,
        consumer: str,
        lease_seconds: float,
        max_deliveries: int,
        patience: Patience | None = None,
        look_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look_seconds`: how long it may go on, while there are new tickets, without a look for lapsed ones."""
        self._client, self._blocking, self._keys = client, blocking, keys
        self.patience = patience or Patience(0.0)
        self._connections = self.patience.connections
        self.consumer = consumer
        self.lease_seconds = lease_seconds
        self._max_deliveries = max_deliveries
        self._look_seconds = lease_seconds / LOOKS if look_seconds is None else look_seconds
        self._clock, self._look_at = clock, -math.inf
        self._claim_new = client.register_script(scripts.CLAIM)
        self._claim_lapsed = client.register_script(scripts.RECLAIM)
        self._publish = client.register_script(scripts.PUBLISH)
        self._renew = client.register_script(scripts.RENEW)
        self._give_back = client.register_script(scripts.GIVE_BACK)

    def claim(self, free: int, *, held: Sequence[Claim] = (), block_seconds: float | None = None) -> list[Claim]:
        """At most `free` tickets: lapsed ones first, then evaluation, then training; blocks at most half a lease.

        `held` is what the caller has in hand. At most one ticket with two or more deliveries is held at a time, so a
        ticket that kills its owner does not take its neighbours along for ever; and none of them is claimed again.
        """
        longest = self.lease_seconds / 2
        block = longest if block_seconds is None else min(block_seconds, longest)
        try:
            return self._claim(free, held, block)
        except redis.ResponseError as error:
            if not no_group(error):
                raise
            create_groups(self._client, self._keys)  # Redis has lost everything: the learner will issue again
            return []

    def _claim(self, free: int, held: Sequence[Claim], block: float) -> list[Claim]:
        claims, due = self._unheard(held), self._clock() >= self._look_at
        if due:
            claims += self._reclaim(free - len(claims), [*held, *claims])
        claims += self._new(free - len(claims))
        if not claims and not due:
            claims += self._reclaim(free, held)
        if claims or block <= 0:
            return self._at_most(free, claims)
        # COUNT is per stream, so an unlucky read may bring one of each kind.
        return self._at_most(free, self._wait(block))

    def _at_most(self, free: int, claims: list[Claim]) -> list[Claim]:
        """The ones too many go back."""
        for extra in claims[free:]:
            self.give_back(extra)
        return claims[:free]

    def _unheard(self, held: Sequence[Claim]) -> list[Claim]:
        """After the connection broke: what was delivered to us in replies that never came, however many they were."""
        connections, known = self.patience.connections, {claim.entry_id for claim in held}
        if connections == self._connections:
            return []
        claims: list[Claim] = []
        for kind in KINDS:
            stream = self._keys.tickets(kind)
            mine: Any = self._client.xpending_range(stream, GENERATORS, "-", "+", 1000, consumername=self.consumer)
            for entry in mine:
                if entry["message_id"] not in known:
                    found: Any = self._client.xrange(stream, entry["message_id"], entry["message_id"])
                    claims += self._decode(kind, found, entry["times_delivered"])
        self._connections = connections
        return claims

    def publish(self, claim: Claim, group: RolloutGroup) -> bool:
        """Publish the group of a claimed ticket; False if another was first (the copy is counted and dropped)."""
        return self.publish_all([(claim, group)])[0]

    def publish_all(self, answers: Sequence[tuple[Claim, RolloutGroup]]) -> list[bool]:
        """Several at once, each as `publish` does it."""
        first = [False] * len(answers)
        for kind in KINDS:
            keys = [self._keys.tickets(kind), self._keys.rollouts(kind), self._keys.late]
            for numbers in _portions([n for n, (claim, _) in enumerate(answers) if claim.ticket.kind == kind], answers):
                arguments: list[str | bytes] = [GENERATORS]
                for claim, group in (answers[n] for n in numbers):
                    arguments += (claim.entry_id, claim.ticket.ticket_id, group.wire)
                for number, said in zip(numbers, self._publish(keys, arguments), strict=True):
                    first[number] = said == 1
        return first

    def renew(self, claims: Sequence[Claim]) -> set[bytes]:
        """Renew the leases of what is still ours; returns those entry ids."""
        held: set[bytes] = set()
        for kind in KINDS:
            ids = [c.entry_id for c in claims if c.ticket.kind == kind]
            if ids:
                arguments: list[str | bytes] = [GENERATORS, self.consumer, *ids]
                held |= set(self._renew([self._keys.tickets(kind)], arguments) or ())
        return held

    def give_back(self, claim: Claim, *, failed: bool = False) -> bool:
        """Hand a ticket on to whoever asks next. Unless serving it has `failed`, it was not delivered to us at all."""
        idle = int(self.lease_seconds * 1000) + 1
        args: list[str | bytes | int] = [GENERATORS, self.consumer, claim.entry_id, RETURNED, idle, int(not failed)]
        return bool(self._give_back([self._keys.tickets(claim.ticket.kind)], args))

    def _new(self, free: int) -> list[Claim]:
        """What nobody has had yet; evaluation first."""
        if free <= 0:
            return []
        arguments: list[str | int] = [GENERATORS, self.consumer, free, RETURNED]
        returned, found = self._claim_new([self._keys.tickets(kind) for kind in KINDS], arguments)
        if returned:
            self._look_at = -math.inf
        return [c for kind, entries in zip(KINDS, found, strict=True) for c in self._decode(kind, entries, 1)]

    def _wait(self, seconds: float) -> list[Claim]:
        """One of each kind at most, as soon as there is any."""
        kinds: dict[Any, Kind] = {self._keys.tickets(kind).encode(): kind for kind in KINDS}
        streams: dict[Any, Any] = dict.fromkeys(kinds, ">")
        reply: Any = self._blocking.xreadgroup(
            GENERATORS, self.consumer, streams, count=1, block=max(1, int(seconds * 1000))
        )
        return [c for stream, entries in by_stream(reply) for c in self._decode(kinds[stream], entries, 1)]

    def _reclaim(self, free: int, held: Sequence[Claim]) -> list[Claim]:
        """Lapsed tickets, oldest first, until one is suspect."""
        self._look_at = self._clock() + self._look_seconds
        claims: list[Claim] = []
        for kind in KINDS:
            while len(claims) < free and not any(c.suspect for c in (*held, *claims)):
                found = self._lapsed(kind, {claim.entry_id for claim in held})
                if found is None:
                    break
                claims += found
        return claims

    def _lapsed(self, kind: Kind, held: set[bytes]) -> list[Claim] | None:
        """One lapsed ticket in our name; [] if it needs no serving (any more); None if there is none."""
        stream, idle = self._keys.tickets(kind), int(self.lease_seconds * 1000)
        arguments: list[str | int] = [GENERATORS, self.consumer, idle]
        found = self._claim_lapsed([stream], arguments)
        if found is None:
            return None
        entry, deliveries = found
        if entry[0] in held:  # we slept through our own lease, nobody took it: that was no delivery
            self._client.xclaim(
                stream, GENERATORS, self.consumer, 0, [entry[0]], retrycount=max(1, deliveries - 1), justid=True
            )
            return []
        kept = []
        for claim in self._decode(kind, [entry], deliveries):
            if deliveries > self._max_deliveries:
                self.publish(
                    claim, tombstone(claim.ticket, f"delivered {deliveries - 1} times, never answered", self.consumer)
                )
            else:
                kept.append(claim)
        return kept

    def _decode(self, kind: Kind, entries: Any, deliveries: int) -> list[Claim]:
        claims = []
        for entry_id, told in entries:
            fields = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))  # a script's
            named = fields.get(b"ticket_id", b"").decode("utf-8", "replace")
            try:
                ticket = decode_ticket(fields.get(b"payload", b""))
                if (ticket.ticket_id, ticket.kind) != (named, kind):
                    raise Malformed("the payload names another ticket than its entry")
                claims.append(Claim(entry_id, ticket, deliveries))
            except Malformed as error:
                # Answered with a tombstone, on its own stream and under the id outside its payload: so it settles.
                unreadable = Ticket(named[:64] or "?", 0, 0, 0, kind)
                reason = tombstone(unreadable, f"malformed ticket: {error}", self.consumer)
                self.publish(Claim(entry_id, unreadable, deliveries), reason)
        return claims


def _portions(numbers: Sequence[int], answers: Sequence[tuple[Claim, RolloutGroup]]) -> Iterator[list[int]]:
    """Those of `numbers` in order, in portions of few enough bytes."""
    portion, size = list[int](), 0
    for number in numbers:
        more = len(answers[number][1].wire)
        if portion and size + more > TOGETHER_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(number)
        size += more
    if portion:
        yield portion
