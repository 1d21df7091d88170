"""`python -m monitoring.dead_letters RECIPE`: what failed in a run or could not be read, and why.

Invariant: looking changes nothing; `--requeue` does all of what it was asked or nothing. Refuses to know what a payload
means.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from broker.cli import guarded
from broker.connection import connect, require
from broker.errors import Refused
from broker.keys import Keys
from broker.loading import load
from broker.settings import redis_url
from monitoring.letters import Letter, letters, printable
from monitoring.recipe import ViewRecipe, where
from monitoring.requeue import requeue

ROW = 16  # bytes in a row of a hexdump
REQUEUE = (
    "have the learner issue the problems of these tickets again (all: of every one that can be), before its next "
    "regular tickets; their letters go. Verdicts stay: the new tickets have numbers and seeds of their own. Where "
    "learner.order is strict or run.deterministic true this changes the order of training, and so the weights"
)


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
    requests: Any = client.llen(keys.requeue)
    waiting = f"; {requests} tickets wait to be issued again" if requests else ""
    print((f"{count} dead letters{older}" if count else f"no dead letters in {keys.run}") + waiting)


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.dead_letters", description="list what failed in a run, and why")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--payload", metavar="ID", help="dump what is kept of that letter's message")
    parser.add_argument("--requeue", metavar="TICKET_ID", nargs="+", help=REQUEUE)
    options, flags = parser.parse_known_args()
    name, broker = where(options.recipe, load(ViewRecipe, options.recipe, flags))
    with connect(broker, redis_url(broker)) as client:
        require(client)
        if options.payload is not None:
            print("\n".join(hexdump(one(client, Keys(name), options.payload).payload)) or "nothing was kept of it")
        elif options.requeue is not None:
            print("\n".join(requeue(client, Keys(name), options.requeue)))
        else:
            show(client, Keys(name), options.json)


if __name__ == "__main__":
    main()
