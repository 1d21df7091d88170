"""The audit log over a real Redis: it is bounded, and whatever becomes of it costs the one who writes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from broker.audit import LEAST_BYTES, Excerpt, Note, decode_note
from broker.audit_log import WAITING, AuditLog
from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.settings import BrokerSettings
from tests.broker.test_audit import answer, sampling, use

NODE = 100  # entries of a stream's node: Redis trims whole ones


@pytest.fixture
def lost() -> list[int]:
    return []


@pytest.fixture
def log(redis_server: EmbeddedServer, keys: Keys, lost: list[int]) -> Iterator[AuditLog]:
    settings = BrokerSettings(audit_entries=10, audit_bytes=LEAST_BYTES)
    made = AuditLog.of(settings, redis_server.url, keys, lost.append)
    yield made
    made.close()


def kept(client: redis_library.Redis, keys: Keys) -> list[Note]:
    entries: Any = client.xrange(keys.audit)
    return [decode_note(fields[b"payload"]) for _, fields in entries]


def test_notes_are_kept_in_order_under_their_tickets(
    redis: redis_library.Redis, keys: Keys, log: AuditLog, lost: list[int]
) -> None:
    log.write("t1", lambda: sampling(answer("7"), ticket_id="t1"))
    log.write("t1", lambda: use(ticket_id="t1"))
    log.close()
    assert kept(redis, keys) == [sampling(answer("7"), ticket_id="t1"), use(ticket_id="t1")]
    entries: Any = redis.xrange(keys.audit)
    assert [fields[b"ticket_id"] for _, fields in entries] == [b"t1", b"t1"]
    assert lost == []


def test_it_is_bounded_in_entries_and_in_bytes(redis: redis_library.Redis, keys: Keys, log: AuditLog) -> None:
    for number in range(WAITING - 1):
        log.write("t1", lambda number=number: sampling(answer("x" * 50_000), ticket_id="t1", problem=number))  # type: ignore[misc]
    log.close()
    entries: Any = redis.xrange(keys.audit)
    assert all(LEAST_BYTES - 150 < len(fields[b"payload"]) <= LEAST_BYTES for _, fields in entries)
    assert 10 <= len(entries) <= 10 + NODE
    newest = kept(redis, keys)[-1]
    assert newest.problem == WAITING - 2, "the oldest give way"  # type: ignore[union-attr]


def test_small_notes_are_trimmed_as_well(redis: redis_library.Redis, keys: Keys, log: AuditLog) -> None:
    for _ in range(3):
        for _ in range(WAITING - 1):
            log.write("t1", lambda: use(ticket_id="t1"))
        log.close()
    assert 10 <= redis.xlen(keys.audit) <= 10 + NODE


def test_one_that_is_off_makes_no_note_and_needs_no_redis(redis: redis_library.Redis, keys: Keys) -> None:
    def never() -> Note:
        raise AssertionError

    for log in (AuditLog.off(), AuditLog.of(BrokerSettings(audit_entries=0), "redis://127.0.0.1:1", keys)):
        log.write("t1", never)
        log.close()
        assert not log.on
        assert log.lost == 0
    assert redis.exists(keys.audit) == 0


def test_a_note_that_cannot_be_made_is_counted_and_its_neighbours_are_kept(
    redis: redis_library.Redis, keys: Keys, log: AuditLog, lost: list[int]
) -> None:
    log.write("t1", lambda: use(ticket_id="t1"))
    log.write("t2", lambda: use(ticket_id="t2", step=-1))
    log.write("t3", lambda: sampling(ticket_id="t3", prompt=Excerpt.of("half a pair: \ud800")))
    log.close()
    assert [note.ticket_id for note in kept(redis, keys)] == ["t1", "t3"]
    assert lost == [1]


def test_a_full_redis_refuses_notes_which_is_counted_and_said_once(
    tmp_path: Path, keys: Keys, lost: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with EmbeddedServer(tmp_path / "redis") as server, connect(BrokerSettings(), server.url) as client:
        client.config_set("maxmemory", 1)
        log = AuditLog.of(BrokerSettings(), server.url, keys, lost.append)
        for _ in range(3):
            log.write("t1", use)
        log.close()
        client.config_set("maxmemory", 0)
        assert client.exists(keys.audit) == 0
        log.write("t1", use)
        log.close()
        assert client.xlen(keys.audit) == 1, "it goes on once there is room"
    assert sum(lost) == log.lost == 3
    assert capfd.readouterr().out.count("the audit log has lost notes") == 1


def test_a_redis_that_is_not_there_costs_notes_and_no_time(keys: Keys, lost: list[int]) -> None:
    log = AuditLog.of(BrokerSettings(), "redis://127.0.0.1:1", keys, lost.append)
    for _ in range(3):
        log.write("t1", use)
    log.close()
    assert sum(lost) == 3


def test_whoever_writes_never_waits_for_a_note_that_takes_for_ever(
    redis: redis_library.Redis, keys: Keys, log: AuditLog, lost: list[int]
) -> None:
    """The log's thread stands still, as with a Redis that does not answer; what is too much is dropped and counted."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Note:
        begun.set()
        assert go_on.wait(20)
        return use(ticket_id="t0")

    log.write("t0", slow)
    assert begun.wait(20)
    for _ in range(WAITING + 7):
        log.write("t1", lambda: use(ticket_id="t1"))
    assert sum(lost) == 7
    log.close(0.01)
    assert sum(lost) > 7, "who leaves does not wait for long, either"
    go_on.set()
