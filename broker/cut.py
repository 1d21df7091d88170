"""A cut through the books of a run: what a checkpoint keeps of Redis, to make them anew where Redis has lost them.

Invariant: everything in a cut is of one moment, that of the commit its mark names, so a Redis whose mark is older has
lost something of it and one whose mark is not has lost nothing of it. Refuses to know weights and verdicts' reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import redis

from broker.coursebook import observed_in
from broker.errors import Malformed
from broker.fence import Mark
from broker.keys import Keys
from broker.schema import KINDS, Kind


@dataclass(frozen=True)
class Open:
    """A ticket without a final verdict."""

    min_policy_version: int
    issued_at: float  # seconds since the epoch

    def encode(self) -> str:
        """As it stands in the hash of unsettled tickets."""
        return f"{self.min_policy_version} {self.issued_at:.3f}"

    @staticmethod
    def decode(raw: bytes | str) -> Open:
        """From Redis or a checkpoint."""
        minimum, issued_at = raw.split()
        return Open(int(minimum), float(issued_at))


@dataclass(frozen=True)
class Page:
    """The books of one kind of ticket."""

    counters: Mapping[str, str]
    unsettled: Mapping[str, Open]


@dataclass(frozen=True)
class Cut:
    """The books of all kinds at one commit."""

    mark: Mark
    pages: Mapping[Kind, Page]

    @staticmethod
    def nothing() -> Cut:
        """Before the first commit."""
        return Cut(Mark(), {kind: Page({}, {}) for kind in KINDS})

    @staticmethod
    def take(client: redis.Redis, keys: Keys) -> Cut:
        """As Redis has it now."""
        with client.pipeline(transaction=True) as pipe:
            pipe.get(keys.writer)
            for kind in KINDS:
                pipe.hgetall(keys.ledger(kind))
                pipe.hgetall(keys.unsettled(kind))
            mark, *hashes = pipe.execute()
        pages = {}
        for kind, counters, unsettled in zip(KINDS, hashes[::2], hashes[1::2], strict=True):
            opened = {name.decode(): Open.decode(raw) for name, raw in sorted(unsettled.items())}
            pages[kind] = Page({name.decode(): raw.decode() for name, raw in counters.items()}, opened)
        return Cut(Mark.decode(mark), pages)

    def trained(self, tickets: Iterable[str], sequence: int) -> Cut:
        """The books once the checkpoint numbered `sequence` has made these tickets final as trained."""
        train = self.pages["train"]
        final = {ticket for ticket in tickets if ticket in train.unsettled}  # others are final in it already
        counters = {
            **train.counters,
            "trained": str(int(train.counters.get("trained", 0)) + len(final)),
            "sequence": str(sequence),
        }
        unsettled = {name: value for name, value in train.unsettled.items() if name not in final}
        return replace(self, pages={**self.pages, "train": Page(counters, unsettled)})

    @property
    def observed(self) -> int:
        """How many observations of train groups there were."""
        return observed_in(self.pages["train"].counters)

    def named_versions(self) -> frozenset[int]:
        """The policy versions that open tickets ask for."""
        return frozenset(o.min_policy_version for page in self.pages.values() for o in page.unsettled.values())

    def reopened(self, version: int) -> Cut:
        """With every open ticket asking for `version`: the ones they asked for are of a history that is gone."""
        pages = {
            kind: Page(page.counters, {t: replace(o, min_policy_version=version) for t, o in page.unsettled.items()})
            for kind, page in self.pages.items()
        }
        return replace(self, pages=pages)

    def encode(self) -> dict[str, Any]:
        """As plain data."""
        pages = {
            kind: [dict(page.counters), {name: value.encode() for name, value in page.unsettled.items()}]
            for kind, page in self.pages.items()
        }
        return {"mark": self.mark.encode(), "pages": pages}

    @staticmethod
    def decode(raw: Any) -> Cut:
        """From plain data. Raises `Malformed`."""
        try:
            pages = {}
            for kind in KINDS:
                counters, unsettled = raw["pages"][kind]
                opened = {str(name): Open.decode(value) for name, value in unsettled.items()}
                pages[kind] = Page({str(name): str(value) for name, value in counters.items()}, opened)
            return Cut(Mark.decode(raw["mark"].encode()), pages)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Malformed(f"not a cut through the books: {type(error).__name__}: {error}") from None
