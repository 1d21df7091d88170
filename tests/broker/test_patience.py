"""Who waits for a Redis that is away, for how long, and who is told."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import redis
import structlog

from broker.connection import connect
from broker.patience import Patience, passing
from broker.settings import BrokerSettings
from tests.faults import Faulty

MENDED = [
    redis.ConnectionError("Connection refused"),
    redis.TimeoutError(),
    redis.BusyLoadingError(),
    redis.ReadOnlyError(),
    redis.exceptions.OutOfMemoryError(),
    redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
    redis.ResponseError("MASTERDOWN Link with MASTER is down"),
    redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
    redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
]
FOR_GOOD = [
    redis.AuthenticationError("WRONGPASS"),
    redis.ResponseError("WRONGTYPE Operation against a key"),
    redis.exceptions.NoPermissionError("NOPERM"),
    redis.WatchError(),
    ValueError(),
]


@pytest.mark.parametrize("error", MENDED, ids=repr)
def test_what_passes_is_waited_for(error: redis.RedisError) -> None:
    told, failures = list[bool](), [error, error]

    def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert Patience(20.0, told.append)(call) == "done"
    assert told == [True, False]


@pytest.mark.parametrize("error", FOR_GOOD, ids=repr)
def test_what_waiting_cannot_mend_is_raised_at_once(error: Exception) -> None:
    told = list[bool]()

    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        Patience(20.0, told.append)(call)
    assert told == []
    assert not passing(error)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_patience_comes_to_its_end(seconds: float) -> None:
    told = list[bool]()

    def call() -> None:
        raise redis.ConnectionError("gone for good")

    with pytest.raises(redis.ConnectionError, match="gone for good"):
        Patience(seconds, told.append)(call)
    assert told == [True, False]


def test_who_leaves_waits_for_nothing_any_more() -> None:
    calls = list[int]()
    patience = Patience(600.0)

    def call() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            patience.leaving.set()
        raise redis.ConnectionError("gone")

    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            patience(call)
    assert len(calls) == 4


def test_a_client_with_patience_outlives_its_server(tmp_path: Path) -> None:
    """It says that it waits, and each connection counts: the new server may have lost something."""
    with Faulty(tmp_path) as server, structlog.testing.capture_logs() as logs:
        patience = Patience(60.0)
        with connect(BrokerSettings(), server.url, patience=patience) as client:
            client.set("k", "v")
            assert patience.connections == 1
            server.crash()
            threading.Timer(0.3, server.start).start()
            assert client.get("k") == b"v"
            assert patience.connections >= 2  # more where a connection is made to one that is still starting
    assert [line["event"] for line in logs] == ["waiting for redis", "redis answers again"]


def test_a_server_that_was_demoted_is_asked_over_a_new_connection(tmp_path: Path) -> None:
    """The address may lead to its successor by now; the old connection never will."""
    with Faulty(tmp_path) as server:
        told = list[bool]()
        patience = Patience(60.0, told.append)
        with (
            connect(BrokerSettings(), server.url) as admin,
            connect(BrokerSettings(), server.url, patience=patience) as c,
        ):
            c.set("k", "v")
            admin.replicaof("127.0.0.1", "1")
            threading.Timer(0.3, lambda: admin.execute_command("REPLICAOF", "NO", "ONE")).start()
            c.set("k", "w")
            assert c.get("k") == b"w"
            assert told == [True, False]
            assert patience.connections > 1
