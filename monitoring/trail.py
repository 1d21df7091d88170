"""The audit log, read back: what generator and learner told of a group, put together again.

Invariant: a text is shown beside the learner's numbers only if it is of the very attempt at the ticket that the learner
used; what cannot be read is skipped and counted. Looking changes nothing. Refuses to know screens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from broker.audit import LATEST, Sampling, Use, decode_note
from broker.errors import Malformed
from broker.keys import Keys
from broker.streams import added_at

PAGE = 50  # notes in one reply


@dataclass(frozen=True)
class Told:
    """A note, and when it was added (seconds since the epoch, by Redis' clock)."""

    at: float
    note: Sampling | Use


@dataclass(frozen=True)
class Life:
    """What is known of one group; `told_at` of the newest note on it, `sampled_at` of the generator's, `used_at` of the
    learner's."""

    ticket_id: str
    sampling: Sampling | None
    use: Use | None
    told_at: float
    published_at: float | None = None
    used_at: float | None = None
    attempts: int = 0  # that generators told of
    sampled_at: float | None = None

    @property
    def rewards(self) -> list[float]:
        """Of its rollouts, as far as they are numbers."""
        if self.use is not None and self.use.rollouts:
            return [share.reward for share in self.use.rollouts]
        found = [] if self.sampling is None else [answer.reward for answer in self.sampling.answers]
        return [reward for reward in found if reward is not None]

    @property
    def reward(self) -> float | None:
        """Their mean."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    @property
    def verdict(self) -> str:
        """What became of it."""
        return "no verdict yet" if self.use is None else self.use.verdict

    @property
    def versions(self) -> list[int]:
        """Policy versions that sampled it, in order."""
        answers = () if self.sampling is None else self.sampling.answers
        return sorted({span.policy_version for answer in answers for span in answer.spans})

    @property
    def phases(self) -> list[tuple[str, float]]:
        """From its issue to its verdict: (what it waited for or went through, seconds), as far as they are known."""
        found: list[tuple[str, float]] = []
        if self.sampling is not None and self.published_at is not None:
            told = self.sampling
            sampled = max(0.0, told.sample_seconds - told.wait_seconds)
            claimed_at = self.published_at - told.hand_seconds
            rest = told.hand_seconds - told.wait_seconds - sampled - told.verify_seconds
            found += [("waited for a generator", claimed_at - told.issued_at), ("for a version", told.wait_seconds)]
            found += [("sampled", sampled), ("verified", told.verify_seconds), ("published", rest)]
        if self.used_at is not None and self.published_at is not None:
            found.append(("with the learner", self.used_at - self.published_at))
        return [(name, max(0.0, seconds)) for name, seconds in found]


@dataclass(frozen=True)
class Trail:
    """All lives in the log, those told of last at the end; `unreadable` notes are left out."""

    lives: tuple[Life, ...]
    unreadable: int = 0

    @staticmethod
    def read(client: redis.Redis, keys: Keys) -> Trail:
        """As it is now. Raises what Redis raises."""
        told, unreadable, first = list[Told](), 0, "-"
        while True:
            page: Any = client.xrange(keys.audit, first, "+", count=PAGE)
            for entry_id, fields in page:
                try:
                    told.append(Told(_time(entry_id), _note(fields)))
                except Malformed:
                    unreadable += 1
            if len(page) < PAGE:
                return Trail(tuple(joined(told)), unreadable)
            first = f"({page[-1][0].decode()}"


def joined(told: Iterable[Told]) -> list[Life]:
    """The notes of each ticket as its life; of several verdicts (after a rollback) the last one counts."""
    by_ticket: dict[str, list[Told]] = {}
    for one in told:
        by_ticket.setdefault(one.note.ticket_id, []).append(one)
    return sorted((_life(ticket, notes) for ticket, notes in by_ticket.items()), key=lambda life: life.told_at)


def _life(ticket_id: str, notes: list[Told]) -> Life:
    uses = [(one.at, one.note) for one in notes if isinstance(one.note, Use)]
    samplings = [(one.at, one.note) for one in notes if isinstance(one.note, Sampling)]
    used_at, use = uses[-1] if uses else (None, None)
    fitting = [s for s in samplings if use is None or _same(s[1], use)]
    sampled_at, sampling = fitting[-1] if fitting else (None, None)
    published_at = sampled_at if use is None else use.published_at
    return Life(ticket_id, sampling, use, notes[-1].at, published_at, used_at, len(samplings), sampled_at)


def _same(sampling: Sampling, use: Use) -> bool:
    """Of the same attempt: no two took equally long to the last bit. What could not be read does not say of which."""
    return not use.generator or (sampling.generator, sampling.sample_seconds) == (use.generator, use.sample_seconds)


def _time(entry_id: bytes) -> float:
    at = added_at(entry_id)
    if at >= LATEST:  # whoever adds an entry may name it
        raise Malformed("a time that cannot be")
    return at


def _note(fields: dict[bytes, bytes]) -> Sampling | Use:
    note = decode_note(fields.get(b"payload", b""))
    if note.ticket_id != fields.get(b"ticket_id", b"").decode("utf-8", "replace"):
        raise Malformed("the payload names another ticket than its entry")
    return note
