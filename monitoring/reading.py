"""What Redis says of a run: its books, streams and memory, as the exporter shows them.

Invariant: the books of a kind are of one moment (`Ledger.balance`), so an imbalance in them is never one of reading;
looking changes nothing. Refuses to know what is shown, and when somebody is to be alarmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from broker.joining import alive
from broker.keys import Keys
from broker.ledger import Balance, Ledger
from broker.schema import KINDS, Kind
from broker.scripts import OLDEST


@dataclass(frozen=True)
class Stream:
    """One stream: its entries, those of them that somebody has claimed and not settled, seconds since its oldest."""

    entries: int
    pending: int
    oldest: float  # 0 without an entry


@dataclass(frozen=True)
class Reading:
    """One look at a run."""

    balances: Mapping[Kind, Balance]
    ages: Mapping[Kind, float]  # seconds since the oldest outstanding ticket was issued, 0 without one
    streams: Mapping[tuple[str, Kind], Stream]  # of `tickets` and `rollouts`
    dead_letters: int
    dead_letters_dropped: int
    requests: int  # tickets that wait to be issued again
    policy_version: int | None  # the pointer's; None before the first publication
    late: int
    live_generators: int
    finished: bool  # the learner has said that the run is over
    used_memory: int  # bytes
    maxmemory: int  # bytes; 0: as much as there is

    @staticmethod
    def take(client: redis.Redis, keys: Keys, now: float) -> Reading:
        """As it is `now` (seconds since the epoch). Raises what Redis raises."""
        balances = {kind: Ledger(client, keys, kind).balance() for kind in KINDS}
        ages = {kind: 0.0 if b.oldest is None else max(0.0, now - b.oldest) for kind, b in balances.items()}
        letters, dropped, requests, version, late, generators, finished, memory, streams = _figures(client, keys, now)
        return Reading(
            balances=balances,
            ages=ages,
            streams=streams,
            dead_letters=letters,
            dead_letters_dropped=int(dropped or 0),
            requests=requests,
            policy_version=None if version is None else int(version),
            late=int(late or 0),
            live_generators=alive(generators, now),
            finished=bool(finished),
            used_memory=int(memory.get("used_memory", 0)),
            maxmemory=int(memory.get("maxmemory", 0)),
        )


def _figures(client: redis.Redis, keys: Keys, now: float) -> list[Any]:
    """What stands beside the books; the last one is the streams."""
    names = [(name, kind, stream, group) for kind in KINDS for name, (stream, group) in keys.streams(kind).items()]
    with client.pipeline(transaction=False) as pipe:
        pipe.xlen(keys.dead_letters)
        pipe.get(keys.dead_letters_dropped)
        pipe.llen(keys.requeue)
        pipe.get(keys.policy)
        pipe.get(keys.late)
        pipe.hgetall(keys.generators)
        pipe.exists(keys.finished)
        pipe.info("memory")
        for _, _, stream, group in names:
            pipe.xlen(stream)
            pipe.xpending(stream, group)
            pipe.eval(OLDEST, 1, stream)
        found: list[Any] = [_known(reply) for reply in pipe.execute(raise_on_error=False)]
    first, lengths, pending, oldest = found[:8], found[8::3], found[9::3], found[10::3]
    streams = {
        (name, kind): Stream(length, summary["pending"], _age(entry_id, now))
        for (name, kind, _, _), length, summary, entry_id in zip(names, lengths, pending, oldest, strict=True)
    }
    return [*first, streams]


def _age(entry_id: bytes | None, now: float) -> float:
    """An entry's id begins with the milliseconds at which Redis took it."""
    return max(0.0, now - int(entry_id.split(b"-")[0]) / 1000) if entry_id else 0.0


def _known(reply: Any) -> Any:
    """A stream that nobody has begun yet has no pending entries; any other error is one."""
    if isinstance(reply, redis.ResponseError) and str(reply).startswith("NOGROUP"):
        return {"pending": 0}
    if isinstance(reply, Exception):
        raise reply
    return reply
