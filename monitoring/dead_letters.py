"""`python -m monitoring.dead_letters RECIPE`: what failed in a run or could not be read, and why.

Invariant: looking changes nothing, and no byte of a stranger's reaches the terminal but as printable text. Refuses to
know what a payload means.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import redis

from broker.cli import guarded
from broker.connection import connect, require
from broker.errors import Refused
from broker.keys import Keys
from broker.settings import load, redis_url
from monitoring.books import where
from monitoring.recipe import ViewRecipe

PAGE = 100  # letters in one reply
ROW = 16  # bytes in a row of a hexdump
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


def hexdump(payload: bytes) -> Iterator[str]:
    """Rows of sixteen bytes: where, what, and as text."""
    for at in range(0, len(payload), ROW):
        row = payload[at : at + ROW]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{at:08x}  {row.hex(' '):<{3 * ROW - 1}}  {text}"


def one(client: redis.Redis, keys: Keys, entry_id: str) -> Letter:
    """The letter of that id. Raises `Refused` where there is none."""
    try:
        found = next(letters(client, keys, entry_id, entry_id), None)
    except redis.ResponseError:  # no id at all
        found = None
    if found is None:
        raise Refused(f"there is no dead letter {printable(entry_id)}", "`make dead-letters` lists their ids")
    return found


def show(client: redis.Redis, keys: Keys, as_json: bool) -> None:
    """List all of them."""
    count = 0
    for letter in letters(client, keys):
        print(json.dumps(letter.document()) if as_json else letter.line())
        count += 1
    if as_json:
        return
    raw: Any = client.get(keys.dead_letters_dropped)
    older = f", {int(raw)} older ones were dropped" if raw else ""
    print(f"{count} dead letters{older}" if count else f"no dead letters in {keys.run}")


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.dead_letters", description="list what failed in a run, and why")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--payload", metavar="ID", help="dump what is kept of that letter's message")
    options, flags = parser.parse_known_args()
    name, broker = where(options.recipe, load(ViewRecipe, options.recipe, flags))
    with connect(broker, redis_url(broker)) as client:
        require(client)
        if options.payload is not None:
            print("\n".join(hexdump(one(client, Keys(name), options.payload).payload)) or "nothing was kept of it")
        else:
            show(client, Keys(name), options.json)


if __name__ == "__main__":
    main()
