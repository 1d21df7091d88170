"""The books of tickets on a real Redis: every one has one place, one writer, and one verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis as redis_library

from broker.errors import Fenced
from broker.keys import LEARNER, Keys
from broker.ledger import DEAD_LETTER_BYTES, DEAD_LETTERS, Balance, Entry, Ledger
from broker.schema import Rollout, RolloutGroup, Ticket, VersionSpan
from broker.streams import Arrival, RolloutStream, create_groups
from broker.tickets import TicketStream

Publish = Callable[[int], list[Arrival]]


@pytest.fixture
def ledger(redis: redis_library.Redis, keys: Keys) -> Ledger:
    """The train ledger, taken over."""
    create_groups(redis, keys)
    ledger = Ledger(redis, keys)
    ledger.fence.take_over()
    return ledger


@pytest.fixture
def publish(redis: redis_library.Redis, keys: Keys) -> Publish:
    """Answer so many tickets and have the learner claim the groups."""
    stream = TicketStream(redis, redis, keys, "g", 60.0, 3)

    def answer(count: int) -> list[Arrival]:
        tokens, logprobs = np.array([1], np.int32), np.zeros(1, np.float32)
        rollout = Rollout(tokens, logprobs, (VersionSpan(0, 0, 1),), 1.0)
        for claim in stream.claim(count, block_seconds=0):
            stream.publish(claim, RolloutGroup(claim.ticket.ticket_id, "train", 0, tokens, (rollout,)))
        return RolloutStream(redis, redis, keys).claim(count, 0)

    return answer


def issue(ledger: Ledger, *numbers: int) -> None:
    with ledger.transaction() as pipe:
        ledger.issue(pipe, [Ticket(f"t{n:010d}", n, 7, n) for n in numbers])


def of(arrivals: list[Arrival]) -> list[tuple[bytes, str]]:
    return [(arrival.entry_id, arrival.ticket_id) for arrival in arrivals]


# -- the balance ------------------------------------------------------------------------------------------------------


def test_the_books_balance_wherever_a_ticket_is(redis: redis_library.Redis, ledger: Ledger, publish: Publish) -> None:
    assert ledger.balance() == Balance(0, {}, frozenset(), frozenset(), frozenset(), frozenset())
    issue(ledger, *range(6))
    assert len(ledger.balance().waiting) == 6
    arrivals = publish(4)
    assert len(ledger.balance().waiting) == 2
    assert ledger.balance().balanced
    with ledger.transaction() as pipe:
        ledger.settle(pipe, of(arrivals[:2]), "trained")
        ledger.settle(pipe, of(arrivals[2:3]), "degenerate")
        ledger.settle(pipe, [], "stale")
    balance = ledger.balance()
    assert balance.balanced
    assert (balance.issued, balance.verdicts) == (6, {"trained": 2, "degenerate": 1})
    assert balance.unsettled == {"t0000000003", "t0000000004", "t0000000005"}
    assert balance.published == {"t0000000003"}
    assert balance.waiting == {"t0000000004", "t0000000005"}


@pytest.mark.parametrize("count", [15, 16, 17, 32, 33])
def test_no_ticket_is_overlooked_however_many_there_are(
    redis: redis_library.Redis, ledger: Ledger, publish: Publish, count: int
) -> None:
    """They are looked for in pages of sixteen."""
    issue(ledger, *range(2 * count))
    publish(count)
    found = ledger.balance()
    assert (len(found.waiting), len(found.published), found.balanced) == (count, count, True)


def test_a_ticket_in_a_generator_s_hands_is_found_there(redis: redis_library.Redis, keys: Keys, ledger: Ledger) -> None:
    issue(ledger, 0, 1)
    TicketStream(redis, redis, keys, "g", 60.0, 3).claim(1, block_seconds=0)
    balance = ledger.balance()
    assert balance.claimed == {"t0000000000"}
    assert balance.waiting == {"t0000000001"}
    assert balance.balanced


def test_what_is_unsettled_comes_in_order_of_issue_with_its_minimum(ledger: Ledger) -> None:
    issue(ledger, 11, 2, 10, 1)
    assert list(ledger.unsettled().items()) == [(f"t{n:010d}", n) for n in (1, 2, 10, 11)]


def test_a_lost_ticket_is_noticed(redis: redis_library.Redis, keys: Keys, ledger: Ledger) -> None:
    issue(ledger, 0, 1)
    entries: Any = redis.xrange(keys.tickets("train"))
    redis.xdel(keys.tickets("train"), entries[0][0])
    balance = ledger.balance()
    assert not balance.balanced
    assert balance.unsettled - balance.located == {"t0000000000"}


def test_a_lost_group_is_noticed(redis: redis_library.Redis, keys: Keys, ledger: Ledger, publish: Publish) -> None:
    issue(ledger, 0)
    publish(1)
    redis.xtrim(keys.rollouts("train"), maxlen=0)
    assert not ledger.balance().balanced


def test_a_group_that_nobody_issued_is_noticed(redis: redis_library.Redis, keys: Keys, ledger: Ledger) -> None:
    redis.xadd(keys.rollouts("train"), {"ticket_id": "stranger", "payload": b""})
    assert not ledger.balance().balanced


def test_a_verdict_without_its_ticket_is_noticed(redis: redis_library.Redis, keys: Keys, ledger: Ledger) -> None:
    issue(ledger, 0)
    redis.hincrby(keys.ledger("train"), "stale", 1)
    assert not ledger.balance().balanced


def test_train_and_evaluation_are_booked_apart(redis: redis_library.Redis, keys: Keys, ledger: Ledger) -> None:
    evaluations = Ledger(redis, keys, "eval", ledger.fence)
    with evaluations.transaction() as pipe:
        evaluations.issue(pipe, [Ticket("e1", 0, 0, 0, "eval")])
    assert evaluations.balance().issued == 1
    assert evaluations.balance().balanced
    assert ledger.balance().issued == 0


# -- settling ---------------------------------------------------------------------------------------------------------


def test_what_is_settled_is_acknowledged_and_gone(
    redis: redis_library.Redis, keys: Keys, ledger: Ledger, publish: Publish
) -> None:
    issue(ledger, 0, 1)
    arrivals = publish(2)
    with ledger.transaction() as pipe:
        ledger.settle(pipe, of(arrivals[:1]), "failed")
        ledger.discard(pipe, arrivals[1].entry_id)
    pending: Any = redis.xpending(keys.rollouts("train"), LEARNER)
    assert pending["pending"] == 0
    assert redis.xlen(keys.rollouts("train")) == 0
    assert list(ledger.unsettled()) == ["t0000000001"], "to discard an entry gives its ticket no verdict"


def test_a_dead_letter_keeps_the_reason_and_not_the_whole_payload(
    redis: redis_library.Redis, keys: Keys, ledger: Ledger
) -> None:
    payload = bytes(range(256)) * 1000
    with ledger.transaction() as pipe:
        ledger.dead_letter(pipe, "t1", "spans", payload)
    ((_, letter),) = list[Any](redis.xrange(keys.dead_letters))  # type: ignore[arg-type]
    assert letter[b"payload"] == payload[:DEAD_LETTER_BYTES]
    assert (letter[b"kind"], letter[b"ticket_id"], letter[b"reason"]) == (b"train", b"t1", b"spans")


# -- the journal ------------------------------------------------------------------------------------------------------


def test_the_journal_is_read_back_as_written_and_forgotten_from_its_beginning(ledger: Ledger) -> None:
    steps = [Entry(1, 1, True, ("t1", "t2")), Entry(2, 1, False, ("t3",)), Entry(3, 2, True, ())]
    for step in steps:
        with ledger.transaction() as pipe:
            ledger.journal(pipe, step)
    assert ledger.entries() == steps
    assert (ledger.count("step"), ledger.count("policy_version")) == (3, 2)
    with ledger.transaction() as pipe:
        ledger.make_final(pipe, 2, 5)
    assert ledger.entries() == steps[2:]
    assert ledger.count("sequence") == 5
    assert ledger.count("never set") == 0


# -- one writer -------------------------------------------------------------------------------------------------------


def test_an_older_learner_can_write_nothing_more(redis: redis_library.Redis, keys: Keys, ledger: Ledger) -> None:
    issue(ledger, 0)
    successor = Ledger(redis, keys)
    successor.fence.take_over()
    with pytest.raises(Fenced, match="another learner has taken over"):
        issue(ledger, 1)
    assert successor.balance().issued == 1
    issue(successor, 1)
    assert successor.balance().issued == 2


def test_one_that_is_overtaken_within_its_transaction_writes_none_of_it(
    redis: redis_library.Redis, keys: Keys, ledger: Ledger
) -> None:
    def write() -> None:
        with ledger.transaction() as pipe:
            ledger.mark(pipe, "who", "the old one")
            Ledger(redis, keys).fence.take_over()
            ledger.issue(pipe, [Ticket("t1", 0, 0, 0)])

    with pytest.raises(Fenced):
        write()
    assert ledger.books() == {}
    assert redis.xlen(keys.tickets("train")) == 0


def test_an_error_within_a_transaction_leaves_nothing_behind(ledger: Ledger) -> None:
    def write() -> None:
        with ledger.transaction() as pipe:
            ledger.mark(pipe, "half", "done")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert ledger.books() == {}
    issue(ledger, 0)
    assert ledger.balance().balanced, "and the connection is as good as before"


def test_dead_letters_are_an_audit_log_of_bounded_length_that_counts_what_it_drops(
    redis: redis_library.Redis, keys: Keys, ledger: Ledger
) -> None:
    """Whoever can write to the rollout stream can write here; they must not fill the memory of the run."""
    for number in range(DEAD_LETTERS + 3):
        with ledger.transaction() as pipe:
            ledger.dead_letter(pipe, f"t{number}" + "x" * 10_000, "why " * 10_000, b"p" * 10_000)
    letters: Any = redis.xrange(keys.dead_letters)
    assert len(letters) == DEAD_LETTERS
    assert letters[0][1][b"ticket_id"].startswith(b"t3x")
    assert sum(len(part) for part in letters[0][1].values()) < 6000
    assert redis.get(keys.dead_letters_dropped) == b"3"


def test_where_memory_is_full_a_dead_letter_and_what_belongs_to_it_are_refused_together(
    redis: redis_library.Redis, keys: Keys, ledger: Ledger, publish: Publish
) -> None:
    issue(ledger, 0)
    arrivals = publish(1)

    def write() -> None:
        with ledger.transaction() as pipe:
            ledger.dead_letter(pipe, "t0000000000", "why", b"")
            ledger.discard(pipe, arrivals[0].entry_id)

    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis_library.RedisError, match="used memory"):
            write()
    finally:
        redis.config_set("maxmemory", 0)
    assert ledger.balance().published == {"t0000000000"}


def test_a_command_that_the_server_refuses_is_not_taken_for_a_takeover(
    redis: redis_library.Redis, keys: Keys, ledger: Ledger
) -> None:
    redis.set(keys.dead_letters, "not a stream")
    with pytest.raises(redis_library.ResponseError, match="WRONGTYPE"), ledger.transaction() as pipe:
        ledger.dead_letter(pipe, "t1", "spans", b"")
