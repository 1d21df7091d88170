"""`make dead-letters ARGS="--requeue …"`: which letters become tickets again, which stay, and what is said of it.

What the learner makes of the list: tests/consumer/test_requeue.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis as redis_library

from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import Ledger
from broker.schema import Ticket
from broker.settings import BrokerSettings
from broker.ticket_id import TicketId
from monitoring.letters import letters
from monitoring.requeue import requeue
from tests.faults import Proxy, once
from tests.monitoring.test_dead_letters import Bury, Look, bury, look

__all__ = ["bury", "look"]  # fixtures
FIRST, SECOND, AGAIN = "t0000000003p0000000003", "t0000000005p0000000005", "t0000000007p0000000003"
NEVER = "t0000000010p0000000003"
EVALUATION = "e00000000-end-000001"


@pytest.fixture(autouse=True)
def ledger(redis: redis_library.Redis, keys: Keys) -> Ledger:
    """Ten tickets have been issued."""
    ledger = Ledger(redis, keys)
    ledger.fence.take_over()
    with ledger.transaction() as pipe:
        ledger.issue(pipe, [Ticket(str(TicketId(n, n)), n, n, 0) for n in range(10)])
    return ledger


def listed(client: redis_library.Redis, keys: Keys) -> list[str]:
    raw: Any = client.lrange(keys.requeue, 0, -1)
    return [ticket_id.decode() for ticket_id in raw]


def kept(client: redis_library.Redis, keys: Keys) -> list[str]:
    return [letter.ticket_id for letter in letters(client, keys)]


def test_a_letter_that_is_named_leaves_and_its_ticket_waits_to_be_issued(
    redis: redis_library.Redis, keys: Keys, bury: Bury, look: Look
) -> None:
    for ticket_id in (FIRST, SECOND, AGAIN):
        bury(ticket_id, "the engine has a fever")
    assert look("--requeue", SECOND, AGAIN) == [
        f"{SECOND}: its problem is issued again",
        f"{AGAIN}: its problem is issued again",
        "2 before the learner's next regular tickets",
    ]
    assert listed(redis, keys) == [SECOND, AGAIN]
    assert kept(redis, keys) == [FIRST]
    assert look()[-1] == "1 dead letters; 2 tickets wait to be issued again"
    assert look("--requeue", FIRST)[-1] == "1 before the learner's next regular tickets"
    assert listed(redis, keys) == [SECOND, AGAIN, FIRST], "in the order in which they were asked for"
    assert look() == [f"no dead letters in {keys.run}; 3 tickets wait to be issued again"]


def test_all_takes_what_can_be_and_leaves_the_rest(
    redis: redis_library.Redis, keys: Keys, bury: Bury, look: Look
) -> None:
    bury(SECOND, "spans")
    bury(EVALUATION, "spans", kind="eval")
    bury("nobody's", "no such ticket, or a copy")
    bury(NEVER, "no such ticket, or a copy")
    bury(FIRST, "reward")
    assert look("--requeue", "all")[-1] == (
        "2 before the learner's next regular tickets; 3 letters stay: of evaluations, or of no ticket of this run"
    )
    assert listed(redis, keys) == [SECOND, FIRST], "oldest first"
    assert kept(redis, keys) == [EVALUATION, "nobody's", NEVER]
    assert look("--requeue", "all") == [
        "there is nothing to issue again; 3 letters stay: of evaluations, or of no ticket of this run"
    ]
    assert len(listed(redis, keys)) == 2


def test_two_letters_of_a_ticket_are_one_ticket(redis: redis_library.Redis, keys: Keys, bury: Bury, look: Look) -> None:
    bury(FIRST, "spans")
    bury(FIRST, "no such ticket, or a copy")
    look("--requeue", FIRST)
    assert (listed(redis, keys), kept(redis, keys)) == ([FIRST], [])


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (EVALUATION, f"{EVALUATION} cannot be issued again: evaluations are repeated as a whole, "),
        ("nobody's", "nobody's cannot be issued again: that is not the id of a train ticket"),
        (NEVER, f"{NEVER} cannot be issued again: this run has issued no such ticket"),
        (
            "t0000000004p0000000004",
            "there is no dead letter of a ticket t0000000004p0000000004: `make dead-letters` lists them",
        ),
        ("\x1b[2J", "there is no dead letter of a ticket \N{REPLACEMENT CHARACTER}[2J: "),
    ],
)
def test_one_that_cannot_be_is_a_line_and_nothing_is_done_for_the_others(
    redis: redis_library.Redis, keys: Keys, bury: Bury, look: Look, capsys: pytest.CaptureFixture[str], wanted: str,
    line: str,
) -> None:  # fmt: skip
    bury(FIRST, "spans")
    bury(EVALUATION, "spans", kind="eval")
    for stranger in ("nobody's", NEVER):
        bury(stranger, "no such ticket, or a copy")
    before = redis.dump(keys.dead_letters)
    with pytest.raises(SystemExit, match="2"):
        look("--requeue", FIRST, wanted)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"headrace: {line}")
    assert redis.dump(keys.dead_letters) == before
    assert listed(redis, keys) == []


def test_a_run_that_has_ended_issues_nothing_any_more(redis: redis_library.Redis, keys: Keys, bury: Bury) -> None:
    bury(FIRST, "spans")
    redis.set(keys.finished, "solved")
    with pytest.raises(Refused, match=rf"the run {keys.run} has ended \(solved\)"):
        requeue(redis, keys, [FIRST])
    assert kept(redis, keys) == [FIRST]


def test_a_redis_without_room_keeps_the_letter(redis: redis_library.Redis, keys: Keys, bury: Bury) -> None:
    bury(FIRST, "spans")
    try:
        redis.config_set("maxmemory", 1)
        with pytest.raises(redis_library.RedisError):
            requeue(redis, keys, [FIRST])
    finally:
        redis.config_set("maxmemory", 0)
    assert (listed(redis, keys), kept(redis, keys)) == ([], [FIRST])


def test_two_who_ask_at_once_get_each_ticket_once(
    redis: redis_library.Redis, redis_server: EmbeddedServer, keys: Keys, bury: Bury
) -> None:
    """One has read the letters, and before he takes them somebody else does."""
    bury(FIRST, "spans")
    bury(SECOND, "spans")
    takes = once(b"EXEC")

    def overtake(request: bytes) -> bool:
        if takes(request):
            requeue(redis, keys, [FIRST])
        return False

    with Proxy(redis_server.port) as proxy, connect(BrokerSettings(), proxy.url) as slow:
        proxy.before = overtake
        assert requeue(slow, keys, ["all"])[0] == f"{SECOND}: its problem is issued again"
    assert listed(redis, keys) == [FIRST, SECOND]
    assert kept(redis, keys) == []
