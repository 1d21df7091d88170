"""Tickets and groups on a real Redis: who may publish, who holds what, and what no message can bring to a halt.

Nobody waits for a lease to lapse: what is pending is made older instead, as Redis itself would have it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis as redis_library
from msgspec.structs import replace

from broker.embedded import EmbeddedServer
from broker.keys import GENERATORS, LEARNER, Keys
from broker.ledger import Ledger
from broker.patience import Patience
from broker.schema import KINDS, Kind, Rollout, RolloutGroup, Ticket, VersionSpan, encode_group, encode_ticket
from broker.streams import RolloutStream, create_groups, forget_generators
from broker.tickets import LOOKS, TOGETHER_BYTES, Claim, TicketStream
from tests.clock import Clock
from tests.system.pipeline import wait_until

LEASE = 60.0
Join = Callable[[str], TicketStream]


@pytest.fixture
def join(redis: redis_library.Redis, blocking: redis_library.Redis, keys: Keys) -> Join:
    """A generator's end of the stream, by the generator's name."""
    create_groups(redis, keys)
    return lambda name: TicketStream(redis, blocking, keys, name, LEASE, 3)


@pytest.fixture
def rollouts(redis: redis_library.Redis, blocking: redis_library.Redis, keys: Keys) -> RolloutStream:
    create_groups(redis, keys)
    return RolloutStream(redis, blocking, keys)


def ticket(number: int, kind: Kind = "train") -> Ticket:
    return Ticket(f"{kind[0]}{number:010d}", number, 7, 0, kind)


def issue(client: redis_library.Redis, keys: Keys, *tickets: Ticket) -> None:
    for one in tickets:
        ledger = Ledger(client, keys, one.kind)
        ledger.fence.take_over()
        with ledger.transaction() as pipe:
            ledger.issue(pipe, [one])


def group_of(claim: Claim, generator: str) -> RolloutGroup:
    tokens, logprobs = np.array([1, 2], np.int32), np.zeros(2, np.float32)
    rollouts = tuple(Rollout(tokens, logprobs, (VersionSpan(0, 0, 2),), reward) for reward in (0.0, 1.0))
    one = claim.ticket
    return RolloutGroup(one.ticket_id, one.kind, one.problem, tokens, rollouts, generator)


def age(client: redis_library.Redis, keys: Keys, seconds: float = LEASE + 1) -> None:
    """Everything pending has been silent for `seconds` more."""
    for kind in KINDS:
        pending: Any = client.xpending_range(keys.tickets(kind), GENERATORS, "-", "+", 1000)
        for entry in pending:
            idle = int(entry["time_since_delivered"] + seconds * 1000)
            owner, entry_id = entry["consumer"], entry["message_id"]
            client.xclaim(keys.tickets(kind), GENERATORS, owner, 0, [entry_id], idle=idle, justid=True)


def owners(client: redis_library.Redis, keys: Keys, kind: Kind = "train") -> list[bytes]:
    pending: Any = client.xpending_range(keys.tickets(kind), GENERATORS, "-", "+", 1000)
    return [entry["consumer"] for entry in pending]


def calls(client: redis_library.Redis, command: str) -> int:
    """How often the server has run it, in scripts or alone."""
    told: Any = client.info("commandstats")
    return int(told.get(f"cmdstat_{command}", {}).get("calls", 0))


def ids(claims: list[Claim]) -> list[str]:
    return [claim.ticket.ticket_id for claim in claims]


# -- publishing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["owner", "successor"])
def test_the_first_publisher_wins_and_the_late_copy_is_counted(
    redis: redis_library.Redis, keys: Keys, join: Join, rollouts: RolloutStream, first: str
) -> None:
    issue(redis, keys, ticket(0))
    owner, successor = join("owner"), join("successor")
    (held,) = owner.claim(1, block_seconds=0)
    age(redis, keys)
    (reclaimed,) = successor.claim(1, block_seconds=0)
    order = [(owner, held), (successor, reclaimed)]
    for stream, claim in order if first == "owner" else order[::-1]:
        assert stream.publish(claim, group_of(claim, stream.consumer)) == (stream.consumer == first)
    (arrival,) = rollouts.claim(10, 0)
    assert arrival.group is not None
    assert (arrival.ticket_id, arrival.group.generator) == ("t0000000000", first)
    assert redis.get(keys.late) == b"1"
    assert redis.xlen(keys.tickets("train")) == 0


def test_a_command_that_was_sent_twice_publishes_once(
    redis: redis_library.Redis, keys: Keys, join: Join, rollouts: RolloutStream
) -> None:
    issue(redis, keys, ticket(0))
    stream = join("g")
    (claim,) = stream.claim(1, block_seconds=0)
    assert [stream.publish(claim, group_of(claim, "g")) for _ in range(3)] == [True, False, False]
    assert len(rollouts.claim(10, 0)) == 1


def test_groups_published_together_are_each_on_their_own(
    redis: redis_library.Redis, keys: Keys, join: Join, rollouts: RolloutStream
) -> None:
    """Of either kind, one a copy, and more bytes than the server is given at once."""
    issue(redis, keys, *(ticket(n) for n in range(4)), *(ticket(n, "eval") for n in range(2)))
    stream = join("g")
    claims = stream.claim(6, block_seconds=0)
    copied = claims[3]
    assert stream.publish(copied, group_of(copied, "another"))
    answers = [
        (claim, replace(group_of(claim, "g"), prompt=np.ones(TOGETHER_BYTES // 12, np.int32))) for claim in claims
    ]
    before = calls(redis, "evalsha")
    assert stream.publish_all(answers) == [claim != copied for claim in claims]
    assert calls(redis, "evalsha") - before == 3, "two of evaluation in one step, four of training in two"
    arrivals = {a.ticket_id: a.group for a in rollouts.claim(10, 0)}
    assert {t: g is not None and g.generator for t, g in arrivals.items()} == {
        claim.ticket.ticket_id: "another" if claim == copied else "g" for claim in claims
    }
    assert redis.get(keys.late) == b"1"


# -- handing back -----------------------------------------------------------------------------------------------------


def test_a_ticket_handed_back_is_taken_at_once_and_as_if_never_delivered(
    redis: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, ticket(0))
    for name in ("a", "b", "c", "d", "e"):  # more often than a ticket may be delivered
        stream = join(name)
        (claim,) = stream.claim(1, block_seconds=0)
        assert (claim.deliveries, claim.suspect) == (1, False)
        assert stream.give_back(claim)


def test_only_the_owner_can_hand_a_ticket_back(redis: redis_library.Redis, keys: Keys, join: Join) -> None:
    issue(redis, keys, ticket(0))
    owner, successor = join("owner"), join("successor")
    (claim,) = owner.claim(1, block_seconds=0)
    age(redis, keys)
    (reclaimed,) = successor.claim(1, block_seconds=0)
    assert not owner.give_back(claim)
    assert owners(redis, keys) == [b"successor"]
    successor.publish(reclaimed, group_of(reclaimed, "successor"))
    assert not successor.give_back(reclaimed)


# -- leases -----------------------------------------------------------------------------------------------------------


def test_a_renewed_lease_does_not_lapse_and_counts_no_delivery(
    redis: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, ticket(0), ticket(1, "eval"))
    owner, other = join("owner"), join("other")
    claims = owner.claim(2, block_seconds=0)
    for _ in range(5):
        age(redis, keys, LEASE - 1)
        assert owner.renew(claims) == {claim.entry_id for claim in claims}
    assert other.claim(2, block_seconds=0) == []
    age(redis, keys)
    assert [claim.deliveries for claim in other.claim(1, block_seconds=0)] == [2], "the owner's and the other's own"


def test_renewing_never_steals_back_what_another_has_reclaimed(
    redis: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, ticket(0), ticket(1))
    owner, successor = join("owner"), join("successor")
    claims = owner.claim(2, block_seconds=0)
    age(redis, keys)
    successor.claim(1, block_seconds=0)
    assert owner.renew(claims) == {claims[1].entry_id}
    assert owners(redis, keys) == [b"successor", b"owner"]


def test_renewing_does_not_bring_back_what_was_published(redis: redis_library.Redis, keys: Keys, join: Join) -> None:
    issue(redis, keys, ticket(0))
    stream = join("g")
    (claim,) = stream.claim(1, block_seconds=0)
    stream.publish(claim, group_of(claim, "g"))
    assert stream.renew([claim]) == set()
    assert owners(redis, keys) == []


# -- claiming ---------------------------------------------------------------------------------------------------------


def test_nobody_is_given_more_than_asked_for_and_evaluation_comes_first(
    redis: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, ticket(0), ticket(1), ticket(2), ticket(0, "eval"), ticket(1, "eval"))
    stream = join("g")
    assert ids(stream.claim(3, block_seconds=0)) == ["e0000000000", "e0000000001", "t0000000000"]
    assert ids(stream.claim(0, block_seconds=0)) == []
    assert ids(stream.claim(9, block_seconds=0)) == ["t0000000001", "t0000000002"]


def test_at_most_one_suspect_is_held_at_a_time(redis: redis_library.Redis, keys: Keys, join: Join) -> None:
    issue(redis, keys, ticket(0), ticket(1), ticket(2), ticket(3))
    dead, alive = join("dead"), join("alive")
    dead.claim(3, block_seconds=0)
    age(redis, keys)
    first = alive.claim(3, block_seconds=0)
    assert ids(first) == ["t0000000000", "t0000000003"], "one suspect, and what nobody has had yet"
    assert [claim.suspect for claim in first] == [True, False]
    assert alive.claim(2, held=first, block_seconds=0) == []
    alive.publish(first[0], group_of(first[0], "alive"))
    assert ids(alive.claim(2, held=first[1:], block_seconds=0)) == ["t0000000001"]


@pytest.mark.parametrize("kind", KINDS)
def test_past_its_deliveries_a_ticket_is_settled_with_a_tombstone(
    redis: redis_library.Redis, keys: Keys, join: Join, rollouts: RolloutStream, kind: Kind
) -> None:
    issue(redis, keys, ticket(0, kind))
    for name in ("a", "b", "c"):
        assert len(join(name).claim(1, block_seconds=0)) == 1
        age(redis, keys)
    issue(redis, keys, ticket(1, kind))
    assert ids(join("d").claim(2, block_seconds=0)) == [ticket(1, kind).ticket_id]
    (arrival,) = rollouts.claim(10, 0)
    assert arrival.group is not None
    assert (arrival.kind, arrival.ticket_id) == (kind, ticket(0, kind).ticket_id)
    assert arrival.group.failed == "delivered 3 times, never answered"
    assert redis.xlen(keys.tickets(kind)) == 1


# What five claims of new tickets take: five scripts, and what these do on either stream.
COMMANDS = {"evalsha": 5, "xreadgroup": 10, "xpending": 10, "xautoclaim": 0, "xclaim": 0}


def test_new_tickets_are_claimed_in_one_step(redis: redis_library.Redis, keys: Keys, join: Join) -> None:
    """A generator claims for every group it answers: what that takes must not grow with what others hold."""
    issue(redis, keys, *(ticket(n) for n in range(40)))
    join("other").claim(30, block_seconds=0)
    stream = join("g")
    stream.claim(1, block_seconds=0)  # its first look for lapsed ones
    before = {name: calls(redis, name) for name in COMMANDS}
    for _ in range(5):
        assert len(stream.claim(1, block_seconds=0)) == 1
    assert {name: calls(redis, name) - before[name] for name in COMMANDS} == COMMANDS


def test_who_is_never_idle_looks_for_lapsed_tickets_some_times_a_lease(
    redis: redis_library.Redis, blocking: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, *(ticket(n) for n in range(9)))
    join("dead").claim(1, block_seconds=0)
    clock = Clock(0.0)
    busy = TicketStream(redis, blocking, keys, "busy", LEASE, 3, clock=clock)
    busy.claim(1, block_seconds=0)
    age(redis, keys)
    clock.now += LEASE / LOOKS - 1
    assert ids(busy.claim(1, block_seconds=0)) == ["t0000000002"]
    clock.now += 1
    assert ids(busy.claim(1, block_seconds=0)) == ["t0000000000"]


def test_who_is_never_idle_takes_what_was_handed_back_next(redis: redis_library.Redis, keys: Keys, join: Join) -> None:
    issue(redis, keys, *(ticket(n) for n in range(9)))
    leaving, busy = join("leaving"), join("busy")
    (claim,) = leaving.claim(1, block_seconds=0)
    busy.claim(1, block_seconds=0)
    leaving.give_back(claim)
    assert ids(busy.claim(1, block_seconds=0) + busy.claim(1, block_seconds=0)) == ["t0000000002", "t0000000000"]


def test_a_reader_that_waits_is_woken_by_a_ticket(redis: redis_library.Redis, keys: Keys, join: Join) -> None:
    stream, found = join("g"), list[Claim]()
    waiter = threading.Thread(target=lambda: found.extend(stream.claim(1, block_seconds=30.0)))
    waiter.start()
    wait_until(lambda: int(redis.info("clients")["blocked_clients"]) > 0, "the reader waits")
    issue(redis, keys, ticket(0))
    waiter.join()
    assert ids(found) == ["t0000000000"]


def test_an_idle_reader_finds_the_tickets_of_a_dead_owner(
    redis: redis_library.Redis, blocking: redis_library.Redis, keys: Keys, join: Join
) -> None:
    """With its own patience, that is without `block_seconds`: it must come back to look for lapsed ones."""
    issue(redis, keys, ticket(0))
    join("dead").claim(1, block_seconds=0)
    idle = TicketStream(redis, blocking, keys, "idle", 0.2, 3)
    found = next(claims for claims in iter(lambda: idle.claim(1), None) if claims)
    assert ids(found) == ["t0000000000"]


def test_tickets_from_before_the_first_reader_are_not_lost(
    redis: redis_library.Redis, keys: Keys, blocking: redis_library.Redis
) -> None:
    issue(redis, keys, ticket(0))
    for _ in range(2):  # and whoever comes second changes nothing
        create_groups(redis, keys)
    assert len(TicketStream(redis, blocking, keys, "g", LEASE, 3).claim(1, block_seconds=0)) == 1
    create_groups(redis, keys)
    assert owners(redis, keys) == [b"g"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_shapes_of_replies_are_understood(redis_server: EmbeddedServer, keys: Keys, protocol: int) -> None:
    with redis_library.Redis.from_url(redis_server.url, protocol=protocol) as client:
        create_groups(client, keys)
        issue(client, keys, ticket(0), ticket(1, "eval"))
        stream, rollouts = TicketStream(client, client, keys, "g", LEASE, 3), RolloutStream(client, client, keys)
        stream.claim(2, block_seconds=0)
        age(client, keys)
        for _ in range(2):
            (claim,) = stream.claim(1, block_seconds=0.1)
            assert claim.deliveries == 2
            assert stream.publish(claim, group_of(claim, "g"))
        assert sorted(arrival.ticket_id for arrival in rollouts.claim(10, 0.1)) == ["e0000000001", "t0000000000"]
        assert len(rollouts.pending()) == 2


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_an_unreadable_ticket_is_settled_under_the_id_beside_its_payload(
    redis: redis_library.Redis, keys: Keys, join: Join, rollouts: RolloutStream
) -> None:
    redis.xadd(keys.tickets("train"), {"ticket_id": "t0000000009", "payload": b"\x00rubbish"})
    issue(redis, keys, ticket(0))
    assert ids(join("g").claim(2, block_seconds=0)) == ["t0000000000"]
    (arrival,) = rollouts.claim(10, 0)
    assert arrival.group is not None
    assert arrival.ticket_id == "t0000000009"
    assert arrival.group.failed.startswith("malformed ticket: ")


POISON: dict[str, dict[Any, Any]] = {
    "nothing": {"x": "y"},
    "no id": {"payload": encode_ticket(ticket(0))[:-3]},
    "an id of the other kind": {"ticket_id": "e0", "payload": b"rubbish"},
    "an id of no kind": {"ticket_id": "\u00fc" * 100, "payload": b"rubbish"},
    "a ticket of train": {"ticket_id": ticket(0).ticket_id, "payload": encode_ticket(ticket(0))},
    "a ticket of eval": {"ticket_id": ticket(0, "eval").ticket_id, "payload": encode_ticket(ticket(0, "eval"))},
    "another's id": {"ticket_id": "t0000000008", "payload": encode_ticket(ticket(9))},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", POISON.values(), ids=POISON.keys())
def test_no_ticket_is_delivered_for_ever(
    redis: redis_library.Redis, keys: Keys, join: Join, rollouts: RolloutStream, kind: Kind, fields: dict[Any, Any]
) -> None:
    """Whatever is on the stream: it is served, or answered with a tombstone, under the id that its entry carries."""
    redis.xadd(keys.tickets(kind), fields)
    for name in ("a", "b", "c", "d"):
        stream = join(name)
        for claim in stream.claim(1, block_seconds=0):
            stream.publish(claim, group_of(claim, name))
        age(redis, keys)
    assert redis.xlen(keys.tickets(kind)) == 0, "still delivered again and again"
    (entry,) = rollouts.claim(10, 0)
    assert entry.kind == kind
    if isinstance(fields.get("ticket_id"), str) and fields["ticket_id"].isascii():
        assert entry.ticket_id == fields["ticket_id"]


# -- arriving ---------------------------------------------------------------------------------------------------------


def test_a_restarted_learner_finds_all_that_was_pending_in_order(
    redis: redis_library.Redis, keys: Keys, join: Join, blocking: redis_library.Redis
) -> None:
    stream = join("g")
    tickets = [*(ticket(n, "eval") for n in range(70)), *(ticket(n) for n in range(150))]  # several pages of either
    issue(redis, keys, *tickets)
    for claim in stream.claim(len(tickets), block_seconds=0):
        stream.publish(claim, group_of(claim, "g"))
    first = RolloutStream(redis, blocking, keys)
    assert len(first.claim(1000, 0)) == 220
    assert first.claim(1000, 0) == []
    again = RolloutStream(redis, blocking, keys).pending()
    assert [arrival.ticket_id for arrival in again] == [one.ticket_id for one in tickets]
    assert {arrival.kind for arrival in again} == set(KINDS)


@pytest.mark.parametrize(
    ("ticket_id", "payload", "reason"),
    [
        ("t1", b"\x93rubbish", "not msgpack|expected"),
        ("t1", b"", "not msgpack"),
        ("t1", encode_group(group_of(Claim(b"", ticket(2), 1), "g")), "names another ticket"),
        ("e0000000002", encode_group(group_of(Claim(b"", ticket(2, "eval"), 1), "g")), "names another ticket"),
    ],
)
def test_a_group_that_cannot_be_read_arrives_with_its_reason(
    redis: redis_library.Redis, keys: Keys, rollouts: RolloutStream, ticket_id: str, payload: bytes, reason: str
) -> None:
    redis.xadd(keys.rollouts("train"), {"ticket_id": ticket_id, "payload": payload})
    redis.xadd(keys.rollouts("train"), {"nothing": "of the kind"})
    arrival, stranger = rollouts.claim(10, 0)
    assert arrival.group is None
    assert (arrival.kind, arrival.ticket_id, arrival.payload) == ("train", ticket_id, payload)
    assert any(part in arrival.malformed for part in reason.split("|"))
    assert stranger.group is None
    pending: Any = redis.xpending(keys.rollouts("train"), LEARNER)
    assert pending["pending"] == 2, "reading settles nothing"


# -- forgetting -------------------------------------------------------------------------------------------------------


def test_a_silent_generator_is_forgotten_once_it_owes_nothing(
    redis: redis_library.Redis, keys: Keys, join: Join
) -> None:
    """XGROUP DELCONSUMER alone would destroy the ticket in its hands."""
    issue(redis, keys, ticket(0), ticket(1))
    dead, alive = join("dead"), join("alive")
    (held,) = dead.claim(1, block_seconds=0)
    (other,) = alive.claim(1, block_seconds=0)
    alive.publish(other, group_of(other, "alive"))

    def known() -> list[bytes]:
        consumers: Any = redis.xinfo_consumers(keys.tickets("train"), GENERATORS)
        return sorted(consumer["name"] for consumer in consumers)

    assert forget_generators(redis, keys, 3600.0) == 0, "one that has just been heard is not silent"
    wait_until(lambda: forget_generators(redis, keys, 0.0), "a millisecond has passed")
    assert known() == [b"dead"]
    age(redis, keys)
    (again,) = alive.claim(1, block_seconds=0)
    assert again.entry_id == held.entry_id
    assert alive.publish(again, group_of(again, "alive"))


def test_nobody_is_forgotten_where_redis_has_lost_everything(redis: redis_library.Redis, keys: Keys) -> None:
    assert forget_generators(redis, keys, 0.0) == 0


def test_one_who_slept_through_its_own_lease_is_not_given_its_ticket_twice(
    redis: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, ticket(0))
    sleeper = join("sleeper")
    (held,) = sleeper.claim(1, block_seconds=0)
    for _ in range(5):
        age(redis, keys)
        assert sleeper.claim(1, held=[held], block_seconds=0) == []
    pending: Any = redis.xpending_range(keys.tickets("train"), GENERATORS, "-", "+", 10)
    assert [entry["times_delivered"] for entry in pending] == [1], "its naps are no deliveries"
    assert sleeper.publish(held, group_of(held, "sleeper"))


def test_what_was_delivered_and_never_heard_is_claimed_after_the_next_connection(
    redis: redis_library.Redis, keys: Keys
) -> None:
    create_groups(redis, keys)
    issue(redis, keys, *(ticket(n) for n in range(4)))
    patience = Patience(0.0)
    stream = TicketStream(redis, redis, keys, "g", LEASE, 3, patience)
    (heard,) = stream.claim(1, block_seconds=0)
    stream.claim(2, held=[heard], block_seconds=0)  # the reply to this was lost
    patience.connected()
    again = stream.claim(3, held=[heard], block_seconds=0)
    assert ids(again) == ["t0000000001", "t0000000002", "t0000000003"]
    assert [claim.deliveries for claim in again] == [1, 1, 1]
    redis.xreadgroup(GENERATORS, "g", {keys.tickets("train"): ">"})  # and once more, of a retry nobody heard of
    patience.connected()
    assert stream.claim(1, held=[heard], block_seconds=0) == again[:1]
    assert ids(TicketStream(redis, redis, keys, "h", LEASE, 3).claim(3, block_seconds=0)) == ids(again[1:])


def test_where_redis_has_lost_everything_the_streams_are_made_again(
    redis: redis_library.Redis, blocking: redis_library.Redis, keys: Keys, join: Join
) -> None:
    issue(redis, keys, ticket(0))
    stream, rollouts = join("g"), RolloutStream(redis, blocking, keys)
    claims = stream.claim(1, block_seconds=0)
    redis.flushall()
    assert stream.renew(claims) == set()
    assert not stream.give_back(claims[0])
    assert not stream.publish(claims[0], group_of(claims[0], "g"))
    assert not stream.claim(1, block_seconds=0)
    assert not rollouts.claim(1, 0)
    issue(redis, keys, ticket(1))
    assert ids(stream.claim(1, block_seconds=0)) == ["t0000000001"]
    redis.delete(keys.rollouts("train"))
    assert rollouts.claim(1, 0) == []
    assert rollouts.disturbed, "so the learner looks at its books"
