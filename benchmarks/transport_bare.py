"""The same commands by bare redis-py, in its best way: what the contract costs whoever has no code of ours around it.

Invariant: the server runs each command as often, group by group, as it does for `transport_ours`, with the same bytes.
Nothing is encoded, decoded, checked or remembered beyond what the next command needs. Refuses to know schema, books and
what a group holds.
"""

from __future__ import annotations

from typing import Any

from benchmarks.transport_groups import degenerate, group
from benchmarks.transport_trial import BLOCK_SECONDS, Seat, Way
from broker.keys import GENERATORS, LEARNER, Keys
from broker.schema import KINDS, Ticket, encode_group, encode_ticket
from broker.scripts import CLAIM, PUBLISH
from broker.streams import create_groups
from broker.tickets import RETURNED, TOGETHER_BYTES
from consumer.inbox import CLAIM_COUNT

NAME = "t{:010d}p0000000017"


class Producer:
    """Claims tickets, sends the same bytes for each."""

    coding = 0.0

    def __init__(self, seat: Seat) -> None:
        self._load, self._stop = seat.load, seat.stop
        self._name, self._keys = f"g{seat.number}", Keys(seat.run)
        self._client, self._blocking = seat.client(), seat.client(BLOCK_SECONDS)
        self._claim, self._publish = self._client.script_load(CLAIM), self._client.script_load(PUBLISH)
        self._payload = encode_group(group(seat.load.size, NAME.format(0), 17, 0))
        self._together = max(1, TOGETHER_BYTES // len(self._payload))

    def run(self) -> None:
        """Until told to stop."""
        keys = (self._keys.tickets("train"), self._keys.rollouts("train"), self._keys.late)
        while not self._stop.is_set():
            tickets = self._tickets()
            if not tickets and self._load.stored:
                return
            for at in range(0, len(tickets), self._together):
                arguments: Any = [GENERATORS]
                for ticket in tickets[at : at + self._together]:
                    arguments += (*ticket, self._payload)
                self._client.evalsha(self._publish, 3, *keys, *arguments)

    def _tickets(self) -> list[tuple[bytes, bytes]]:
        """Entry and ticket of as many as there are slots, or of the first that comes."""
        streams = [self._keys.tickets(kind) for kind in KINDS]
        arguments: Any = (GENERATORS, self._name, self._load.slots, RETURNED)
        _, found = self._client.evalsha(self._claim, len(streams), *streams, *arguments)
        if found[-1] or self._load.stored:
            return [(entry_id, fields[1]) for entry_id, fields in found[-1]]
        block = int(BLOCK_SECONDS * 1000)
        wanted: Any = dict.fromkeys(streams, ">")
        reply: Any = self._blocking.xreadgroup(GENERATORS, self._name, wanted, count=1, block=block)
        return [(entry_id, fields[b"ticket_id"]) for entry_id, fields in (reply[0][1] if reply else ())]


class Consumer:
    """Reads groups, settles half of them at once and the others step by step."""

    coding = 0.0

    def __init__(self, seat: Seat) -> None:
        self._load = seat.load
        self._client, self._blocking = seat.client(), seat.client(BLOCK_SECONDS)
        self._keys = keys = Keys(seat.run)
        create_groups(self._client, keys)
        self._client.set(keys.writer, "1 0 bare")
        self._ticket = encode_ticket(Ticket(NAME.format(0), 17, 1 << 30, 0))
        self._issued = self._version = self._settled = 0
        self._trained: list[tuple[bytes, bytes]] = []  # since the last checkpoint
        with self._client.pipeline(transaction=True) as pipe:
            self._issue(pipe, self._load.capacity)
            pipe.execute()

    def run(self) -> None:
        """Until all groups are settled."""
        streams: Any = {self._keys.rollouts("eval"): ">", self._keys.rollouts("train"): ">"}
        batch: list[tuple[bytes, bytes]] = []
        while self._settled < self._load.groups:
            found: Any = self._blocking.xreadgroup(
                LEARNER, "learner", streams, count=CLAIM_COUNT, block=int(BLOCK_SECONDS * 1000)
            )
            entries = found[0][1] if found else []
            here = [(entry_id, fields[b"ticket_id"]) for entry_id, fields in entries]
            gone = [one for one in here if degenerate(one[1].decode())]
            batch += [one for one in here if not degenerate(one[1].decode())]
            if gone:
                self._consume(gone)
            while len(batch) >= self._load.groups_per_step:
                self._train(batch[: self._load.groups_per_step])
                del batch[: self._load.groups_per_step]
        self._checkpoint()

    def _consume(self, gone: list[tuple[bytes, bytes]]) -> None:
        with self._transaction(len(gone)) as pipe:
            self._settle(pipe, gone, "degenerate")
            self._issue(pipe, len(gone))
            self._commit(pipe)
        self._settled += len(gone)

    def _train(self, batch: list[tuple[bytes, bytes]]) -> None:
        keys = self._keys
        self._client.get(keys.writer)
        self._version += 1
        with self._transaction(len(batch)) as pipe:
            pipe.rpush(keys.journal, str([self._version, self._version, True, [t.decode() for _, t in batch]]))
            pipe.hset(keys.ledger("train"), mapping={"step": self._version, "policy_version": self._version})
            pipe.set(keys.policy, self._version)
            pipe.publish(keys.policy, self._version)
            self._issue(pipe, len(batch))
            self._commit(pipe)
        self._settled += len(batch)
        self._trained += batch
        if self._version % self._load.checkpoint_every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        if self._trained:
            ledger = self._keys.ledger("train")
            self._client.hget(ledger, "observed")
            with self._transaction() as pipe:
                self._settle(pipe, self._trained, "trained")
                pipe.ltrim(self._keys.journal, self._load.checkpoint_every, -1)
                pipe.hset(ledger, "sequence", self._version)
                pipe.delete(self._keys.observations)
                self._commit(pipe)
            self._trained = []

    def _transaction(self, issued: int = 0) -> Any:
        """Behind a look at who writes."""
        if issued:
            self._client.lrange(self._keys.requeue, 0, issued - 1)
        pipe = self._client.pipeline(transaction=True)
        pipe.watch(self._keys.writer)
        pipe.get(self._keys.writer)
        pipe.multi()
        return pipe

    def _commit(self, pipe: Any) -> None:
        pipe.set(self._keys.writer, f"1 {self._settled} bare")
        pipe.execute()

    def _settle(self, pipe: Any, entries: list[tuple[bytes, bytes]], verdict: str) -> None:
        stream = self._keys.rollouts("train")
        pipe.xack(stream, LEARNER, *[entry_id for entry_id, _ in entries])
        pipe.xdel(stream, *[entry_id for entry_id, _ in entries])
        pipe.hdel(self._keys.unsettled("train"), *[ticket for _, ticket in entries])
        pipe.hincrby(self._keys.ledger("train"), verdict, len(entries))

    def _issue(self, pipe: Any, count: int) -> None:
        names = [NAME.format(n) for n in range(self._issued, self._issued + count)]
        self._issued += count
        ledger = self._keys.ledger("train")
        pipe.hset(self._keys.unsettled("train"), mapping=dict.fromkeys(names, f"{self._version} 1700000000.000"))
        pipe.hincrby(ledger, "issued", count)
        for name in names:
            pipe.xadd(self._keys.tickets("train"), {"ticket_id": name, "payload": self._ticket})
        pipe.hincrby(ledger, "drawn:0", count)
        pipe.hset(ledger, "walked:0", self._issued)


BARE = Way("bare", Producer, Consumer)
