"""What the books hold of the curriculum: how far each part was walked, and how groups did since the last checkpoint.

Invariant: counters and observations change in the same MULTI as the tickets and verdicts they belong to, and `observed`
counts every observation there ever was, so that what a checkpoint holds and what came after it fit without a gap or an
overlap. Refuses to know what is chosen by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from broker.errors import Malformed, Refused
from broker.keys import Keys

DRAWN, WALKED = "drawn:", "walked:"  # and the number of a part
OBSERVED = "observed"


@dataclass(frozen=True)
class Observation:
    """How one group did: `solved` of `attempts` completions, in that `epoch` of the problem's part."""

    problem: int
    epoch: int
    solved: int
    attempts: int

    def encode(self) -> str:
        """As it stands in Redis."""
        return f"{self.problem} {self.epoch} {self.solved} {self.attempts}"

    @staticmethod
    def decode(raw: bytes | str) -> Observation:
        """From Redis. Raises `Malformed`."""
        text = raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw
        words = text.split(" ")
        if len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) < 16 for word in words):
            raise Malformed("not an observation")
        seen = Observation(*map(int, words))
        if not seen.solved <= seen.attempts or not seen.attempts:
            raise Malformed("an observation of numbers that cannot be")
        return seen


@dataclass(frozen=True)
class Standing:
    """Part → problems drawn from it (requests not counted), and positions walked of its epochs; the observations."""

    drawn: Mapping[int, int]
    walked: Mapping[int, int]
    observed: int  # all there ever were
    latest: tuple[Observation, ...]  # the newest of them: those that no durable checkpoint holds


class Coursebook:
    """Of one run. Only the learner writes it, inside the ledger's transactions."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client, self._keys, self._books = client, keys, keys.ledger("train")

    def add(
        self, pipe: Any, drawn: Mapping[int, int], walked: Mapping[int, int], observed: Sequence[Observation]
    ) -> None:
        """So many more are `drawn` of a part, whose epochs are `walked` up to there; these observations, in order."""
        for part, count in drawn.items():
            pipe.hincrby(self._books, f"{DRAWN}{part}", count)
            pipe.hset(self._books, f"{WALKED}{part}", walked[part])
        if observed:
            pipe.rpush(self._keys.observations, *[seen.encode() for seen in observed])
            pipe.hincrby(self._books, OBSERVED, len(observed))

    def forget(self, pipe: Any, observed: int) -> None:
        """A durable checkpoint holds the first `observed` observations."""
        there: Any = self._client.hget(self._books, OBSERVED)
        latest = int(there or 0) - observed
        if latest > 0:
            pipe.ltrim(self._keys.observations, -latest, -1)
        else:
            pipe.delete(self._keys.observations)

    def read(self) -> Standing:
        """As the books stand. Raises `Refused`."""
        raw: Any = self._client.hgetall(self._books)
        books = {name.decode(): value.decode() for name, value in raw.items()}
        lines: Any = self._client.lrange(self._keys.observations, 0, -1)
        try:
            latest = tuple(Observation.decode(line) for line in lines)
        except Malformed as error:
            cause = f"the observations of run {self._keys.run} in Redis cannot be read ({error})"
            raise Refused(cause, "choose another run.name, or bring Redis' data back") from None
        drawn = _counts(books, DRAWN)  # books of before there were other walks do not say how far they went
        return Standing(drawn, {**drawn, **_counts(books, WALKED)}, observed_in(books), latest)


def observed_in(books: Mapping[str, str]) -> int:
    """How many observations there were when the counters stood so."""
    return int(books.get(OBSERVED, 0))


def _counts(books: Mapping[str, str], prefix: str) -> dict[int, int]:
    return {int(k.removeprefix(prefix)): int(v) for k, v in books.items() if k.startswith(prefix)}
