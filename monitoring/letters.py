"""Dead letters as they stand in their stream.

Invariant: no byte of a stranger's reaches the terminal but as printable text. Refuses to know what a payload means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis

from broker.keys import Keys

PAGE = 100  # letters in one reply
TEXTS = (b"kind", b"ticket_id", b"reason")


@dataclass(frozen=True)
class Letter:
    """One dead letter; `entry_id` is its name, and says when it was set aside."""

    entry_id: str
    kind: str
    ticket_id: str
    reason: str
    payload: bytes

    @property
    def time(self) -> float:
        """Seconds since the epoch, by Redis' clock."""
        return int(self.entry_id.partition("-")[0]) / 1000

    def line(self) -> str:
        """For people, on one line."""
        when = datetime.fromtimestamp(self.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        told = f"{when}  {self.entry_id:<18}  {self.kind:<5}  {self.ticket_id:<11}  {self.reason}"
        return printable(told + (f"  ({len(self.payload)} bytes kept)" if self.payload else ""))

    def document(self) -> dict[str, Any]:
        """For programs."""
        told = {"id": self.entry_id, "time": self.time, "kind": self.kind, "ticket_id": self.ticket_id}
        return {**told, "reason": self.reason, "payload_bytes": len(self.payload)}


def letters(client: redis.Redis, keys: Keys, first: str = "-", last: str = "+") -> Iterator[Letter]:
    """Those that are kept, oldest first."""
    while True:
        found: Any = client.xrange(keys.dead_letters, first, last, count=PAGE)
        for entry_id, fields in found:
            kind, ticket_id, reason = (fields.get(n, b"").decode("utf-8", "replace") for n in TEXTS)
            yield Letter(entry_id.decode(), kind, ticket_id, reason, fields.get(b"payload", b""))
        if len(found) < PAGE:
            return
        first = f"({found[-1][0].decode()}"


def printable(text: str) -> str:
    """On one line, and without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
