"""Exactly once, whatever the connection does: requests that are never heard, answers that never come, amnesia."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.errors import Behind, Fenced
from broker.fence import Fence, Mark
from broker.keys import Keys
from broker.ledger import Ledger
from broker.patience import Patience
from broker.settings import BrokerSettings
from tests.faults import Faulty, Proxy, once

NEVER = once(b"never sent")


@pytest.fixture
def proxy(redis_server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as proxy:
        yield proxy


def ledger_over(url: str, keys: Keys) -> Ledger:
    patience = Patience(30.0)
    client = connect(BrokerSettings(), url, patience=patience)
    return Ledger(client, keys, fence=Fence(client, keys, patience))


def count(ledger: Ledger, times: int = 1) -> None:
    for _ in range(times):
        with ledger.transaction() as pipe:
            pipe.hincrby("counter", "commits", 1)


FAULTS = {
    "a request that is never heard": (once(b"EXEC"), NEVER),
    "an answer that never comes": (NEVER, once(b"EXEC")),
    "a watch that is never heard": (once(b"WATCH"), NEVER),
    "a mark that cannot be read": (NEVER, once(b"GET")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_transaction_takes_effect_once(redis: redis_library.Redis, keys: Keys, proxy: Proxy, fault: str) -> None:
    ledger = ledger_over(proxy.url, keys)
    ledger.fence.take_over()
    count(ledger)
    proxy.before, proxy.after = FAULTS[fault]
    count(ledger, 2)
    assert redis.hget("counter", "commits") == b"3"
    assert ledger.fence.found().commits == 3


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(["", "before", "after"]), min_size=1, max_size=12))
def test_however_often_the_connection_breaks(
    redis: redis_library.Redis, redis_server: EmbeddedServer, faults: list[str]
) -> None:
    redis.flushall()
    with Proxy(redis_server.port) as proxy:
        ledger = ledger_over(proxy.url, Keys("breaking"))
        ledger.fence.take_over()
        for fault in faults:
            proxy.before = once(b"EXEC") if fault == "before" else NEVER
            proxy.after = once(b"EXEC") if fault == "after" else NEVER
            count(ledger)
    assert redis.hget("counter", "commits") == str(len(faults)).encode()


def test_a_redis_that_has_forgotten_is_found_out_before_anything_is_written(tmp_path: Path, keys: Keys) -> None:
    with Faulty(tmp_path) as server:
        ledger = ledger_over(server.url, keys)
        ledger.fence.take_over()
        count(ledger, 2)
        server.remember()
        count(ledger, 3)
        server.forget()
        for attempt in (ledger.fence.check, lambda: count(ledger)):
            with pytest.raises(Behind, match="3 transactions"):
                attempt()
        server.lose_all()
        with pytest.raises(Behind):
            ledger.fence.check()
        assert ledger.fence.found() == Mark()


def test_a_takeover_counts_on_from_what_is_certain(redis: redis_library.Redis, keys: Keys) -> None:
    """An old learner that still lives must not take the books made anew for its own."""
    old = Ledger(redis, keys)
    old.fence.take_over()
    count(old, 4)
    redis.flushall()
    new = Ledger(redis, keys)
    new.fence.take_over()
    assert new.fence.found().commits == 0, "what is missing is missing until it is given back"
    with new.transaction(known=Mark(old.fence.mark.epoch, "somebody", 4)) as pipe:
        pipe.hset("counter", "commits", 4)
    assert (new.fence.mark.epoch, new.fence.mark.commits) == (old.fence.mark.epoch + 1, 5)
    with pytest.raises(Fenced):
        count(old)
    count(new)
    assert redis.hget("counter", "commits") == b"5"


def test_nobody_writes_without_having_taken_over(redis: redis_library.Redis, keys: Keys) -> None:
    with pytest.raises(Fenced, match="taken them over"):
        count(Ledger(redis, keys))
