"""What every test may ask for: a real server, a client on an empty database, a run name of its own."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator

import pytest
import redis as redis_library

from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.heap import pass_over_what_is_loaded
from broker.keys import Keys
from broker.settings import BrokerSettings


def pytest_configure() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and so would be every process under test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)  # xdist reads the marks in the same hook, and before whoever merely wants to be first
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """What fails fast is seen first. A file's tests stay in one process, all engines in one: while that is busy for
    minutes, the others have the whole runs to do, of which each is short enough for all to end together.
    """
    items.sort(key=_turn)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("engine" if _is_of_an_engine(item) else item.location[0]))
    yield
    if config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in items):
        raise pytest.UsageError("xdist's groups have no effect with this pytest: every fixture would be made twice")


def pytest_collection_finish() -> None:
    """Some thousand tests and what they import are there to stay: to look through them each time took an eighth."""
    pass_over_what_is_loaded()


def _turn(item: pytest.Item) -> int:
    return 1 if _is_of_an_engine(item) else 2 if "system" in item.path.parts else 0


def _is_of_an_engine(item: pytest.Item) -> bool:
    return item.get_closest_marker("engine") is not None


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The session's Redis; `.url` is what processes under test are given."""
    with EmbeddedServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def _client(redis_server: EmbeddedServer) -> Iterator[redis_library.Redis]:
    with connect(BrokerSettings(), redis_server.url) as client:
        yield client


@pytest.fixture
def redis(_client: redis_library.Redis) -> redis_library.Redis:
    """A client on an empty database."""
    _client.flushall()
    return _client


@pytest.fixture
def blocking(redis_server: EmbeddedServer) -> Iterator[redis_library.Redis]:
    """A client for commands that block up to five seconds."""
    with connect(BrokerSettings(), redis_server.url, blocking_seconds=5.0) as client:
        yield client


@pytest.fixture
def keys() -> Keys:
    """The key space of a run that no other test knows."""
    return Keys(f"test-{uuid.uuid4().hex[:8]}")
