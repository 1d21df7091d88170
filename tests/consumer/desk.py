"""The learner's end of the wire and a generator's hand, over a real Redis: tickets are answered as a test says.

Invariant: everything goes through the production streams, ledger and PolicyStore. Refuses to know when something
happens: nothing here blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from msgspec.structs import replace

from broker.keys import Keys
from broker.ledger import Ledger
from broker.patience import Patience
from broker.policy import PolicyStore
from broker.schema import Kind, RolloutGroup, Ticket, tombstone
from broker.streams import Arrival, RolloutStream, create_groups
from broker.ticket_id import TicketId
from broker.tickets import Claim, TicketStream
from consumer.buffer import Held
from consumer.choice import problem_of
from consumer.dispatch import Dispatch
from consumer.tickets import Flow
from tests.consumer.groups import group

FLOW = Flow(capacity=6, groups_per_step=2, total_groups=40, problems=7, seed=0)


class Desk:
    """One run in Redis."""

    def __init__(self, client: redis.Redis, keys: Keys, folder: Path, patience: Patience | None = None) -> None:
        create_groups(client, keys)
        self.client, self.keys = client, keys
        self.policy = PolicyStore(client, keys, folder, 2, 60.0)
        self.tickets = TicketStream(client, client, keys, "hand", 60.0, 3, patience)
        self.rollouts = RolloutStream(client, client, keys)
        self.claims: dict[str, Claim] = {}

    def ledger(self, kind: Kind = "train") -> Ledger:
        """The books, as the newest learner writes them."""
        ledger = Ledger(self.client, self.keys, kind)
        ledger.fence.take_over()
        return ledger

    def dispatch(self, flow: Flow = FLOW) -> Dispatch:
        """A new learner's dispatch, not yet opened or resumed."""
        return Dispatch(self.ledger(), self.policy, flow)

    def opened(self, flow: Flow = FLOW) -> Dispatch:
        """A dispatch at version 0 whose first tickets are out."""
        dispatch = self.dispatch(flow)
        self.upload(0)
        dispatch.open(0)
        return dispatch

    def upload(self, version: int) -> None:
        """Weights of `version`, complete in the PolicyStore, not pointed at."""
        self.policy.write(version, lambda folder: _fill(folder, version))

    def claim(self, count: int = 1000) -> list[Ticket]:
        """Tickets that are out and unclaimed, now in the generator's hands; evaluation first."""
        claims = self.tickets.claim(count, block_seconds=0)
        self.claims |= {claim.ticket.ticket_id: claim for claim in claims}
        return [claim.ticket for claim in claims]

    def publish(self, made: RolloutGroup) -> bool:
        """Answer a claimed ticket with this group."""
        return self.tickets.publish(self.claims[made.ticket_id], made)

    def answer(self, *ticket_ids: str, rewards: Sequence[float] = (0.0, 1.0)) -> list[Held]:
        """Claim, answer these tickets, and hand over what arrives, in the order of the tickets."""
        self.claim()
        for ticket_id in ticket_ids:
            ticket = self.claims[ticket_id].ticket
            made = group(ticket_id, rewards, ticket.min_policy_version)
            self.publish(replace(made, kind=ticket.kind, problem=ticket.problem))
        return [Held(a.entry_id, a.group) for a in self.arrivals() if a.group is not None]

    def bury(self, ticket_id: str) -> None:
        """Answer a claimed ticket with a tombstone."""
        self.publish(tombstone(self.claims[ticket_id].ticket, "delivered too often"))

    def arrivals(self) -> list[Arrival]:
        """What has been published and not been claimed by the learner."""
        return self.rollouts.claim(1000, 0)

    def send(self, ticket_id: str, payload: bytes, kind: Kind = "train") -> Arrival:
        """A message that no generator of ours would write, as it arrives."""
        self.client.xadd(self.keys.rollouts(kind), {"ticket_id": ticket_id, "payload": payload})
        (arrival,) = self.arrivals()
        return arrival

    def dead_letters(self) -> list[tuple[str, str]]:
        """(ticket_id, reason) of everything set aside."""
        letters: Any = self.client.xrange(self.keys.dead_letters)
        return [(fields[b"ticket_id"].decode(), fields[b"reason"].decode()) for _, fields in letters]

    def dump(self) -> dict[bytes, bytes | None]:
        """Everything that Redis holds, key by key: to say that nothing at all has changed."""
        names: Any = self.client.keys("*")
        dumped: dict[bytes, Any] = {name: self.client.dump(name) for name in sorted(names)}
        return dumped


def ids(*numbers: int) -> list[str]:
    """Ticket ids by number, where nothing was asked for again."""
    return [str(TicketId(n, problem_of(FLOW.seed, n, FLOW.problems))) for n in numbers]


def trained(desk: Desk, dispatch: Dispatch, *numbers: int) -> list[str]:
    """Groups answered, in and taken into a batch; their tickets."""
    batch = desk.answer(*ids(*numbers))
    dispatch.take(batch)
    return [held.group.ticket_id for held in batch]


def publish(desk: Desk, dispatch: Dispatch, step: int, version: int, batch: list[str]) -> None:
    """Upload the version that learnt from the batch, and commit it."""
    desk.upload(version)
    dispatch.commit(step, version, batch, publish=True)


def _fill(folder: Path, version: int) -> None:
    (folder / "weights").write_text(str(version))
