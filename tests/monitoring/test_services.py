"""Servers as children: ready when `start` returns, or one line that says why not. Python's own server plays them."""

from __future__ import annotations

import socket
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest

from broker.errors import Refused
from monitoring.services import HOST, Service
from tests.ports import free_port


def service(folder: Path, code: str = "", port: int | None = None) -> Service:
    port = port or free_port()
    command = [sys.executable, *(["-c", code] if code else ["-m", "http.server", str(port), "--bind", HOST])]
    return Service("Grafana", command, folder / "logs" / "server.log", port, "/", {"NAME": "of mine"})


def test_it_answers_as_soon_as_it_has_started_and_no_longer_once_it_is_stopped(tmp_path: Path) -> None:
    with service(tmp_path) as server:
        connection = HTTPConnection(HOST, server.port)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        assert not server.ended
    assert server.ended
    with socket.create_server((HOST, server.port)):
        server.stop()  # again: nothing happens


def test_one_that_ends_says_its_last_words(tmp_path: Path) -> None:
    code = "import os, sys; print('looking around'); sys.exit('no dashboards for ' + os.environ['NAME'])"
    server = service(tmp_path, code)
    with pytest.raises(
        Refused, match=r"Grafana does not answer on http://127\.0\.0\.1:\d+: no dashboards for of mine \(log"
    ):
        server.start()
    assert server.ended


def test_one_that_never_answers_is_ended(tmp_path: Path) -> None:
    server = service(tmp_path, "import time; time.sleep(600)")
    server.ready_seconds = 0.2
    with pytest.raises(Refused, match="it said nothing"):
        server.start()
    assert server.ended


def test_a_taken_port_is_refused_with_the_setting_that_moves_it(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        server = service(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(Refused, match=r"cannot have port \d+: .*: free it, or set monitoring.grafana_port"):
            server.start()
    assert server.process is None
