"""The streams of a run, and the learner's end of the one that groups arrive on.

Invariant: every entry that was handed over is handed over again until it is settled, whatever became of the reply.
Refuses to know verdicts: settling is the ledger's. The generators' end is `broker.tickets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from broker.decoding import decode_group
from broker.errors import Malformed
from broker.keys import GENERATORS, LEARNER, Keys
from broker.patience import Patience
from broker.schema import KINDS, Kind, RolloutGroup
from broker.scripts import FORGET


@dataclass(frozen=True)
class Arrival:
    """A published entry in the learner's hands: a group, or the reason why it cannot be read."""

    entry_id: bytes
    kind: Kind
    ticket_id: str
    group: RolloutGroup | None
    malformed: str = ""
    payload: bytes = b""


def create_groups(client: redis.Redis, keys: Keys) -> None:
    """Create both consumer groups on every stream, once; entries added before a reader exists are not lost."""
    for kind in KINDS:
        for stream, group in keys.streams(kind).values():
            try:
                client.xgroup_create(stream, group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise


def forget_generators(client: redis.Redis, keys: Keys, silent_seconds: float) -> int:
    """Forget consumers of tickets that hold none and have been silent for so long: every start makes a new name.

    How many they were. One that lives after all is made anew by its next read.
    """
    forget = client.register_script(FORGET)
    arguments: list[str | int] = [GENERATORS, int(silent_seconds * 1000)]
    return sum(int(forget([keys.tickets(kind)], arguments)) for kind in KINDS)


class RolloutStream:
    """The learner's end: one named consumer, whose pending entries survive it."""

    def __init__(
        self,
        client: redis.Redis,
        blocking: redis.Redis,
        keys: Keys,
        consumer: str = "learner",
        patience: Patience | None = None,
    ) -> None:
        self._client, self._blocking, self._keys = client, blocking, keys
        self._consumer = consumer
        self._patience = patience or Patience(0.0)
        self._connections = self._patience.connections

    @property
    def disturbed(self) -> bool:
        """A connection was made since `pending`: a reply may have been lost, or Redis may have lost something."""
        return self._patience.connections != self._connections

    def claim(self, count: int, block_seconds: float) -> list[Arrival]:
        """Newly published groups of both kinds, at most `count` of each; waits `block_seconds` for the first."""
        streams: dict[Any, Any] = {self._keys.rollouts(kind): ">" for kind in KINDS}
        block = max(1, int(block_seconds * 1000)) if block_seconds > 0 else None
        client = self._blocking if block else self._client
        try:
            reply: Any = client.xreadgroup(LEARNER, self._consumer, streams, count=count, block=block)
        except redis.ResponseError as error:
            if not no_group(error):
                raise
            create_groups(self._client, self._keys)
            self._connections = -1  # and whoever asks is told to look at everything again
            return []
        return self._arrivals(reply)

    def close(self) -> None:
        """Close the connection that blocks."""
        self._blocking.close()

    def holds(self, kind: Kind, entry_id: bytes) -> bool:
        """The entry is still there."""
        return bool(self._client.xrange(self._keys.rollouts(kind), entry_id, entry_id))

    def pending(self) -> list[Arrival]:
        """Everything claimed earlier and not settled yet, oldest first: what a restarted learner begins with."""
        connections, found = self._patience.connections, list[Arrival]()
        for kind in KINDS:
            last = b"0"
            while True:
                reply: Any = self._client.xreadgroup(
                    LEARNER, self._consumer, {self._keys.rollouts(kind): last}, count=64
                )
                arrivals = self._arrivals(reply)
                if not arrivals:
                    break
                found += arrivals
                last = arrivals[-1].entry_id
        self._connections = connections
        return found

    def _arrivals(self, reply: Any) -> list[Arrival]:
        kinds = {self._keys.rollouts(kind).encode(): kind for kind in KINDS}
        return [
            _arrival(entry_id, fields or {}, kinds[stream])
            for stream, entries in by_stream(reply)
            for entry_id, fields in entries
        ]


def _arrival(entry_id: bytes, fields: dict[bytes, bytes], kind: Kind) -> Arrival:
    ticket_id = fields.get(b"ticket_id", b"").decode("utf-8", "replace")
    payload = fields.get(b"payload", b"")
    try:
        group = decode_group(payload)
        if group.ticket_id != ticket_id or group.kind != kind:
            raise Malformed("the payload names another ticket than its entry")
    except Malformed as error:
        return Arrival(entry_id, kind, ticket_id, None, str(error), payload)
    return Arrival(entry_id, kind, ticket_id, group)


def added_at(entry_id: bytes) -> float:
    """When an entry was added, seconds since the epoch by Redis' clock."""
    return int(entry_id.partition(b"-")[0]) / 1000


def no_group(error: redis.ResponseError) -> bool:
    """Redis has forgotten the stream, and everything else."""
    return "NOGROUP" in str(error)


def by_stream(reply: Any) -> list[tuple[bytes, list[Any]]]:
    """RESP2 answers with a list, RESP3 with a map of lists of entries."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [
            (stream, entries[0] if entries and isinstance(entries[0], list) else entries)
            for stream, entries in reply.items()
        ]
    return [(stream, entries) for stream, entries in reply]
