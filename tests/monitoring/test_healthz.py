"""The question of a container's health check, put to the server that our processes have."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from monitoring.healthz import LONGEST, ask
from monitoring.server import Server, serve
from tests.ports import free_port
from tests.system.pipeline import ROOT

HOST = "127.0.0.1"


class Process:
    """One that serves what it is told to."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.state: dict[str, Any] = {"healthy": True}

    def health(self) -> dict[str, Any]:
        return self.state


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def server(process: Process) -> Iterator[Server]:
    started = serve(process, HOST, free_port(), process.health)
    yield started
    started.stop()


def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As an engine runs it."""
    command = [sys.executable, "-m", "monitoring.healthz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_process_that_is_well_and_one_that_stands_still(server: Server, process: Process) -> None:
    assert ask(server.port) == (True, '200 {"healthy": true}')
    process.state = {"healthy": False, "waiting": "ticket t1"}
    assert ask(server.port) == (False, '503 {"healthy": false, "waiting": "ticket t1"}')


def test_the_engine_is_told_by_the_status_and_keeps_one_line(server: Server, process: Process) -> None:
    process.state = {"healthy": False, "detail": "two\nlines " * LONGEST}
    done = checked(str(server.port))
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = done.stdout.splitlines()
    assert len(line) < LONGEST + 10
    process.state = {"healthy": True}
    assert checked(str(server.port)).returncode == 0


def test_it_may_ask_for_something_else(server: Server) -> None:
    assert ask(server.port, "/metrics")[0]
    assert checked(str(server.port), "/nowhere").returncode == 1


def test_where_nobody_listens(process: Process) -> None:
    done = checked(str(free_port()))
    assert (done.returncode, done.stderr) == (1, "")
    assert "Connection refused" in done.stdout


def test_a_process_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.healthz.SECONDS", 0.2)
    with socket.create_server((HOST, 0)) as silent:
        well, words = ask(silent.getsockname()[1])
    assert (well, words.endswith("timed out")) == (False, True)


def test_a_proxy_of_the_environment_is_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{HOST}:9")
    assert checked(str(server.port)).returncode == 0


def test_it_imports_nothing_that_takes_time() -> None:
    heavy = {"numpy", "prometheus_client", "pydantic", "redis"}
    look = f"import sys, monitoring.healthz; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
