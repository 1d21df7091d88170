"""Dead letters whose problems somebody wants trained after all: their tickets go to the list that the learner reads.

Invariant: a letter leaves its stream in the same MULTI in which its ticket joins the list, so none is lost on the way
or asked for twice. A verdict stays final: the learner issues a new ticket for the same problem. Refuses to know which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis

from broker.errors import Malformed, Refused
from broker.keys import Keys
from broker.schema import Kind
from broker.ticket_id import TicketId
from monitoring.letters import Letter, letters, printable

ALL = "all"
TRAIN: Kind = "train"


def requeue(client: redis.Redis, keys: Keys, wanted: Sequence[str]) -> list[str]:
    """Have the tickets `wanted` (or `all`) issued again; returns what was done, line by line.

    Raises `Refused`, having done nothing, where one of those named cannot be.
    """
    ended: Any = client.get(keys.finished)
    if ended is not None:
        raise Refused(f"the run {keys.run} has ended ({ended.decode()}): no ticket is issued any more")
    done: list[str] = []

    def move(pipe: Any) -> None:
        found, issued = list(letters(pipe, keys)), int(pipe.hget(keys.ledger(TRAIN), "issued") or 0)
        chosen = _all(found, issued) if ALL in wanted else _named(found, issued, wanted)
        tickets = list(dict.fromkeys(letter.ticket_id for letter in chosen))
        done[:] = _told(tickets, len(found) - len(chosen) if ALL in wanted else 0)
        pipe.multi()
        if chosen:
            pipe.xdel(keys.dead_letters, *[letter.entry_id for letter in chosen])
            pipe.rpush(keys.requeue, *tickets)

    client.transaction(move, keys.dead_letters)
    return done


def _all(found: Iterable[Letter], issued: int) -> list[Letter]:
    """Those that can be."""
    return [letter for letter in found if not _obstacle(letter, issued)]


def _named(found: Sequence[Letter], issued: int, wanted: Iterable[str]) -> list[Letter]:
    """All letters of these tickets. Raises `Refused`."""
    known = {letter.ticket_id for letter in found}
    for ticket_id in wanted:
        if ticket_id not in known:
            raise Refused(
                f"there is no dead letter of a ticket {printable(ticket_id)}", "`make dead-letters` lists them"
            )
    chosen = [letter for letter in found if letter.ticket_id in set(wanted)]
    for letter in chosen:
        if obstacle := _obstacle(letter, issued):
            raise Refused(f"{printable(letter.ticket_id)} cannot be issued again", obstacle)
    return chosen


def _obstacle(letter: Letter, issued: int) -> str:
    """Why its problem cannot be issued again; empty if it can."""
    if letter.kind != TRAIN:
        return "evaluations are repeated as a whole, the next one is due as ever"
    try:
        named = TicketId.parse(letter.ticket_id)
    except Malformed as error:
        return f"that is {error}"
    return "" if named.number < issued else "this run has issued no such ticket"


def _told(tickets: Sequence[str], left: int) -> list[str]:
    lines = [f"{ticket_id}: its problem is issued again" for ticket_id in tickets]
    stay = f"; {left} letters stay: of evaluations, or of no ticket of this run" if left else ""
    if not tickets:
        return [f"there is nothing to issue again{stay}"]
    return [*lines, f"{len(tickets)} before the learner's next regular tickets{stay}"]
