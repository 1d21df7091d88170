"""The StalenessBuffer: which of the arrived groups may be trained on now, and what to wait for.

Invariant (rule W): a batch is taken only if every ticket outside it can still be trained on within the bound, batch by
batch; so nothing goes stale while generators keep answering. The shortcut, waiting merely for the group that is due
now, lets several deadlines fall into one step and drops the slow answers. Refuses to know Redis, tensors and clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from broker.ledger import Verdict
from broker.schema import RolloutGroup
from broker.streams import Arrival
from consumer.lineup import Lineup
from consumer.shelf import Shelf

Order = Literal["ready", "strict"]


@dataclass(frozen=True)
class Held:
    """An arrived, readable train group."""

    entry_id: bytes
    group: RolloutGroup


@dataclass(frozen=True)
class Wait:
    """Why there is no batch: too few groups, or a ticket whose deadline the batch would pass over."""

    reason: Literal["batch", "ticket"]
    ticket_id: str = ""


@dataclass(frozen=True)
class Bound:
    """The learner's position against the bound: its version v, steps i taken at it, S, B and k = publish_every."""

    version: int
    steps_at_version: int
    max_staleness: int
    groups_per_step: int
    publish_every: int = 1

    def room(self, ahead: int) -> int:
        """Groups that can be trained up to version v + ahead after the batch in question: B·(j·k + k − 1 − i)."""
        k = self.publish_every
        return self.groups_per_step * (ahead * k + k - 1 - self.steps_at_version)

    def stale(self, group: RolloutGroup) -> bool:
        """A token of the group is older than the bound allows at this version; or of a version yet to come: of another
        history of this run, which was taken back to an older state.
        """
        return self.version - group.oldest_version > self.max_staleness or group.newest_version > self.version


@dataclass
class StalenessBuffer:
    """Arrived groups that have no verdict yet."""

    order: Order
    keep_degenerate: bool = False  # train on groups whose rewards are all equal, as on any other
    held: dict[str, Held] = field(default_factory=dict)
    shelf: Shelf = field(default_factory=Shelf)  # for `ready`, which looks at new arrivals alone

    def __len__(self) -> int:
        return len(self.held)

    def __contains__(self, ticket_id: object) -> bool:
        return ticket_id in self.held

    def add(self, arrival: Arrival) -> bool:
        """Keep a readable train group; False if its ticket is here already (a copy)."""
        if arrival.group is None or arrival.ticket_id in self.held:
            return False
        self.held[arrival.ticket_id] = Held(arrival.entry_id, arrival.group)
        if self.order == "ready":
            self.shelf.add(arrival.ticket_id)
        return True

    def remove(self, ticket_id: str) -> Held:
        """Let go of a group. Raises `KeyError` if it is not here."""
        held = self.held.pop(ticket_id)
        self.shelf.remove(ticket_id)
        return held

    def consumed(self, in_play: Mapping[str, int], bound: Bound) -> list[tuple[Held, Verdict]]:
        """Groups whose verdict is certain without training, removed from the buffer.

        `ready`: as soon as they have arrived. `strict`: only when they head the order and the ones before them are
        good, so that the replacements are numbered the same way in every run; the good ones ahead of them stay for the
        batch. `in_play` as in `take`; from call to call the learner's version only grows.
        """
        return self._consumed_strictly(in_play, bound) if self.order == "strict" else self._consumed(in_play, bound)

    def _consumed_strictly(self, in_play: Mapping[str, int], bound: Bound) -> list[tuple[Held, Verdict]]:
        out: list[tuple[Held, Verdict]] = []
        good = 0
        for ticket_id in in_play:
            held = self.held.get(ticket_id)
            if held is None or good == bound.groups_per_step:
                break
            verdict = self._verdict(held.group, bound)
            if verdict is None:
                good += 1
            else:
                out.append((self.remove(ticket_id), verdict))
        return out

    def _consumed(self, in_play: Mapping[str, int], bound: Bound) -> list[tuple[Held, Verdict]]:
        out: list[tuple[Held, Verdict]] = []
        for ticket_id in self.shelf.to_judge(Lineup.of(in_play), bound.version - bound.max_staleness):
            group = self.held[ticket_id].group
            verdict = self._verdict(group, bound)
            if verdict is None:
                self.shelf.good(ticket_id, group.oldest_version)
            else:
                out.append((self.remove(ticket_id), verdict))
        return out

    def take(self, in_play: Mapping[str, int], bound: Bound) -> list[Held] | Wait:
        """The next batch of B groups, removed from the buffer, or what to wait for.

        `in_play` maps every unsettled ticket that is in no batch yet to its min_policy_version, in order of issue; a
        `Lineup` is not gone through for that.
        """
        line = Lineup.of(in_play)
        if self.order == "strict":
            batch = list(islice(line, bound.groups_per_step))
        else:
            batch = self.shelf.oldest(line, bound.groups_per_step)
        missing = next((t for t in batch if t not in self.held), None)
        if missing is not None:
            return Wait("ticket", missing)
        if len(batch) < bound.groups_per_step:
            return Wait("batch")
        if self.order == "ready":
            offender = self._offender(line, set(batch), bound)
            if offender is not None:
                return Wait("ticket", offender)
        return [self.remove(t) for t in batch]

    def _offender(self, in_play: Lineup, batch: set[str], bound: Bound) -> str | None:
        """Rule W: a ticket that has not arrived and that this batch would leave too little room for.

        u_j changes with the versions that are asked for alone, and the room only grows with j.
        """
        oldest, due, in_batch = bound.version - bound.max_staleness, 0, Counter(in_play[t] for t in batch)
        for minimum, many in in_play.counts():
            ahead = minimum - oldest
            if ahead >= bound.max_staleness:
                return None
            if ahead >= 0:
                due += many - in_batch[minimum]
                if due > bound.room(ahead):
                    tickets = (t for t, m in in_play.items() if oldest <= m <= minimum and t not in self.held)
                    missing = next(tickets, None)
                    if missing is not None:
                        return missing
        return None

    def _verdict(self, group: RolloutGroup, bound: Bound) -> Verdict | None:
        if group.failed:
            return "failed"
        if bound.stale(group):
            return "stale"
        return "degenerate" if group.degenerate and not self.keep_degenerate else None
