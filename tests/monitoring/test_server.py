"""The small server of every process: what Prometheus reads, and what a person asks for."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import Refused
from monitoring.metrics import LearnerMetrics
from monitoring.server import Server, serve
from monitoring.standing import WAITING
from tests.monitoring.test_metrics import HOST, Both, generator, get, learner, scrape
from tests.ports import free_port


@pytest.fixture(params=["learner", "generator"])
def metrics(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
    return learner(tmp_path) if request.param == "learner" else generator()


@pytest.fixture
def server(metrics: Both) -> Iterator[Server]:
    started = serve(metrics, HOST, free_port(), metrics.health)
    yield started
    started.stop()


def test_prometheus_can_read_what_is_served(server: Server, metrics: Both) -> None:
    served = scrape(server.port)
    known = {family.name for family in metrics.registry.collect()}
    assert {name.removesuffix("_created") for name in served} == known
    assert all(family.documentation for name, family in served.items() if name in known)


def test_health_is_json_and_names_what_the_process_waits_for(server: Server, metrics: Both) -> None:
    status, kind, body = get(server.port, "/healthz")
    assert (status, kind) == (200, "application/json")
    health = json.loads(body)
    assert health.keys() == {"role", "healthy", "ready", "waiting", "last_progress_seconds"}
    assert health["role"] == metrics.role
    waiting = health["waiting"]
    assert waiting["reason"] in WAITING
    assert waiting["detail"] == ("t0000000042" if metrics.role == "learner" else "")
    assert waiting["since_seconds"] >= 0
    assert health["last_progress_seconds"] >= 0


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/../metrics", "/%00"])
def test_nothing_else_is_served(server: Server, path: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert get(server.port, path)[0] == 404
    assert get(server.port, "/healthz")[0] == 200
    assert capfd.readouterr() == ("", ""), "no line for a scrape"


def test_a_port_in_use_is_refused_with_the_remedy() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        metrics = LearnerMetrics()
        with pytest.raises(Refused) as caught:
            serve(metrics, HOST, port, metrics.health)
    line = f"cannot serve metrics on {HOST}:{port}: Address already in use: free that port, or set [monitoring] ports"
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_one_is_refused(host: str) -> None:
    metrics = LearnerMetrics()
    with pytest.raises(Refused, match=f"cannot serve metrics on {host}:"):
        serve(metrics, host, free_port(), metrics.health)


def test_port_0_turns_it_off() -> None:
    metrics = LearnerMetrics()
    server = serve(metrics, HOST, 0, metrics.health)
    assert server.port == 0
    server.stop()


def test_a_port_is_free_again_after_the_stop() -> None:
    metrics, port = LearnerMetrics(), free_port()
    for _ in range(3):
        server = serve(metrics, HOST, port, metrics.health)
        assert get(port, "/healthz")[0] == 200
        server.stop()


def test_it_is_ready_once_it_does_its_work_and_while_that_holds(server: Server, metrics: Both) -> None:
    assert get(server.port, "/readyz")[0] == 503
    works = [True]
    metrics.ready_when(lambda: works[0])
    assert get(server.port, "/readyz")[0] == 200
    works[0] = False
    status, _, body = get(server.port, "/readyz")
    assert (status, json.loads(body)["ready"]) == (503, False)
    assert get(server.port, "/healthz")[0] == 200, "nobody restarts it for that"
