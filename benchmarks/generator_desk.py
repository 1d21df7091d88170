"""The learner's end of a run, for benchmarks: issues tickets, publishes versions, reads what generators publish.

Invariant: what is counted was published, and when, by Redis' clock: looking on costs the generators nothing. Refuses to
know learning.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from broker.decoding import decode_group
from broker.joining import Fingerprint, announce
from broker.keys import Keys
from broker.policy import PolicyStore
from broker.schema import Ticket, encode_ticket
from broker.settings import RecipeBase
from broker.streams import added_at, create_groups


@dataclass(frozen=True)
class Arrived:
    """Groups that were published: tokens of their answers, when the last one came, and whose they are."""

    tokens: int
    ended: float
    generators: frozenset[str]


class Desk:
    """Of the run of a recipe; its model's own weights are version 0."""

    def __init__(self, recipe: RecipeBase, client: redis.Redis) -> None:
        self.recipe, self.client, self.keys = recipe, client, Keys(recipe.run.name)
        self._stream = self.keys.rollouts("train")
        of = recipe.policy
        self.policy = PolicyStore(client, self.keys, recipe.policy_directory, of.keep, of.lease_seconds)
        create_groups(client, self.keys)
        announce(client, self.keys, Fingerprint.of(recipe), recipe.model_dump_json(exclude_none=True))
        self.write(0)
        self.point(0)

    def write(self, version: int) -> None:
        """The model's weights once more, under this number."""
        self.policy.write(version, self._fill)

    def point(self, version: int) -> None:
        """From now on this is the newest."""
        with self.client.pipeline() as pipe:
            self.policy.point(pipe, version)
            pipe.execute()

    def issue(self, tickets: Sequence[Ticket]) -> None:
        """As dispatch does, all at once."""
        with self.client.pipeline() as pipe:
            for ticket in tickets:
                fields: Any = {"ticket_id": ticket.ticket_id, "payload": encode_ticket(ticket)}
                pipe.xadd(self.keys.tickets(ticket.kind), fields)
            pipe.execute()

    @property
    def published(self) -> int:
        """Groups that are out and were not collected."""
        return int(self.client.xlen(self._stream))

    def collect(self) -> Arrived:
        """All that is out, which is forgotten then. Raises `AssertionError` for a group that failed."""
        entries: Any = self.client.xrange(self._stream)
        groups = [decode_group(fields[b"payload"]) for _, fields in entries]
        failed = [group.failed for group in groups if group.failed]
        assert not failed, f"{len(failed)} of {len(groups)} groups have failed: {failed[0]}"
        self.client.xtrim(self._stream, maxlen=0)
        tokens = sum(group.completion_tokens for group in groups)
        return Arrived(tokens, added_at(entries[-1][0]), frozenset(group.generator for group in groups))

    def _fill(self, at: Path) -> None:
        for file in Path(self.recipe.run.model).iterdir():
            try:
                os.link(file, at / file.name)
            except OSError:  # another file system
                shutil.copyfile(file, at / file.name)
