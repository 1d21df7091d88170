"""A server that cannot carry a run is refused in one line; what is sent is sent once; no password is ever shown."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from broker.connection import connect, fit, redacted, require, server_version, version_numbers
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.settings import BrokerSettings
from tests.broker.refusal import refusal

GOOD = {"redis_version": "7.0.15", "aof_enabled": 1, "maxmemory": 0, "maxmemory_policy": "noeviction", "role": "master"}
PASSWORD = 's"ecret \\ \n é#@:/'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server that wants a password, and a nasty one."""
    with EmbeddedServer(tmp_path_factory.mktemp("guarded"), password=PASSWORD) as server:
        yield server


def test_a_good_server_is_accepted_and_named(redis_server: EmbeddedServer) -> None:
    with connect(BrokerSettings(), redis_server.url) as client:
        name, version = require(client).split()
    assert name in ("Redis", "Valkey")
    assert version_numbers(version) >= (7, 0)


def test_replies_are_bytes(redis: redis_library.Redis) -> None:
    redis.set("k", "v")
    assert redis.get("k") == b"v"


def test_nobody_there() -> None:
    line = refusal(connect(BrokerSettings(password="hidden"), "redis://127.0.0.1:1"))
    assert line == "no Redis at 127.0.0.1:1 (Connection refused): start one, or correct broker.url"


def test_nobody_at_a_unix_socket(tmp_path: Path) -> None:
    assert f"no Redis at {tmp_path}/none" in refusal(connect(BrokerSettings(), f"unix://{tmp_path}/none"))


def test_a_host_that_does_not_exist() -> None:
    assert "no Redis at no-such-host.invalid:6379 (" in refusal(
        connect(BrokerSettings(), "redis://no-such-host.invalid")
    )


def test_the_right_password_opens(guarded: EmbeddedServer) -> None:
    with connect(BrokerSettings(password=PASSWORD), guarded.url) as client:
        require(client)


def test_a_missing_password(guarded: EmbeddedServer) -> None:
    line = refusal(connect(BrokerSettings(), guarded.url))
    assert "wants a password: set HEADRACE_BROKER__PASSWORD" in line


def test_a_wrong_password_is_not_repeated_to_the_reader(guarded: EmbeddedServer) -> None:
    url = guarded.url.replace("://", "://:wr0ng@")
    line = refusal(connect(BrokerSettings(), url))
    assert "wrong user name or password" in line
    assert "wr0ng" not in line


def test_a_password_for_a_server_without_one(redis_server: EmbeddedServer) -> None:
    assert "has no password, but one was given" in refusal(connect(BrokerSettings(password="x"), redis_server.url))


def test_something_else_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1024)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        refusal(connect(BrokerSettings(), f"redis://127.0.0.1:{listener.getsockname()[1]}"))
        thread.join()


@pytest.mark.parametrize(
    "url", ["http://host", "host:6379", "redis://host:port", "redis://:se/cret@host", "redis://host?nonsense=1", ""]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(Refused, match="is not a Redis URL") as caught:
        connect(BrokerSettings(), url)
    assert "cret" not in str(caught.value)


def test_a_late_reply_is_an_error_and_never_a_second_entry(guarded: EmbeddedServer) -> None:
    """The server stops for longer than the client's patience, and comes back in time for a second attempt."""
    patience = 0.3
    patient = connect(BrokerSettings(password=PASSWORD), guarded.url)
    with patient, connect(BrokerSettings(password=PASSWORD, command_timeout=patience), guarded.url) as impatient:
        impatient.ping()
        os.kill(guarded.pid, signal.SIGSTOP)
        back = threading.Timer(1.5 * patience, os.kill, (guarded.pid, signal.SIGCONT))
        back.start()
        with pytest.raises(redis_library.TimeoutError):
            impatient.xadd("stream", {"n": "1"})
        back.join()
        patient.ping()
        patient.ping()  # the second one comes after everything that had arrived before the first
        assert patient.xlen("stream") == 1


def test_a_full_length_block_is_no_timeout(redis_server: EmbeddedServer, redis: redis_library.Redis) -> None:
    with connect(BrokerSettings(command_timeout=0.2), redis_server.url, blocking_seconds=0.5) as blocking:
        before = time.monotonic()
        assert not blocking.xread({"nothing": "$"}, block=500)
        assert time.monotonic() - before >= 0.5
    other = connect(BrokerSettings(command_timeout=0.2), redis_server.url)
    with other, pytest.raises(redis_library.TimeoutError):
        other.xread({"nothing": "$"}, block=500)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14 at here is too old"),
        ({"redis_version": "4.0"}, "too old"),
        ({"redis_version": "?"}, "of unknown version"),
        ({"redis_mode": "cluster"}, "is a cluster"),
        ({"role": "slave"}, "read-only replica"),
        ({"maxmemory": 1 << 30, "maxmemory_policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
        ({"maxmemory": 1 << 30, "maxmemory_policy": "volatile-ttl"}, "maxmemory-policy volatile-ttl"),
    ],
)
def test_servers_that_cannot_carry_a_run(info: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        fit(GOOD | info, "here")


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ({}, "Redis 7.0.15"),
        ({"redis_version": "8.2.3"}, "Redis 8.2.3"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "Valkey 9.1.2"),
        ({"maxmemory": 1 << 30}, "Redis 7.0.15"),
        ({"maxmemory_policy": "allkeys-lru"}, "Redis 7.0.15"),
    ],
)
def test_servers_that_can(info: dict[str, Any], named: str) -> None:
    assert fit(GOOD | info, "here") == named


def test_a_server_that_forgets_is_warned_of() -> None:
    with structlog.testing.capture_logs() as logs:
        fit(GOOD | {"aof_enabled": 0}, "here")
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_valkey_s_own_version_counts() -> None:
    assert server_version({"redis_version": "7.2.4", "valkey_version": "8.0.1"}) == ("Valkey", (8, 0, 1))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", (7, 0, 15)),
        ("Valkey server v=9.1.2 sha=0 malloc=libc", (9, 1, 2)),
        ("7.4.0-rc1", (7, 4, 0)),
        ("255.255.255", (255, 255, 255)),
        ("no numbers", ()),
        ("", ()),
    ],
)
def test_versions_are_read_out_of_any_text(text: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(text) == numbers


secrets = st.text(st.characters(exclude_characters="&", exclude_categories=["Cs"]), min_size=8)


@given(secret=secrets, user=st.sampled_from(["", "worker"]))
@example("p@ss:w/ord#?x=1", "")
@example("line\nbreak@", "worker")
def test_no_password_survives_redaction(secret: str, user: str) -> None:
    shown = redacted(f"redis://{user}:{secret}@host:6379/0")
    assert secret not in shown
    assert shown.startswith(f"redis://{user}:***@")


def test_redaction_leaves_the_rest_readable() -> None:
    assert redacted("redis://worker:pw@host:6379/0") == "redis://worker:***@host:6379/0"
    assert redacted("rediss://host:6379/0") == "rediss://host:6379/0"
    assert redacted("unix:///run/redis.sock?db=1&password=pw") == "unix:///run/redis.sock?db=1&password=***"
