"""The probes of a learner on several machines: the first asks itself, the others, which serve nothing, pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from monitoring.server import Server, serve
from tests.deploy.k8s.build import Pod, manifests, needs_kubectl, pods
from tests.ports import free_port

pytestmark = needs_kubectl


class Learner:
    """What its endpoints go by."""

    registry = CollectorRegistry()
    state: dict[str, Any]

    def health(self) -> dict[str, Any]:
        return self.state


@pytest.fixture
def learner() -> Learner:
    return Learner()


@pytest.fixture
def server(learner: Learner) -> Iterator[Server]:
    endpoint = serve(learner, "127.0.0.1", free_port(), learner.health)
    yield endpoint
    endpoint.stop()


@pytest.fixture
def pod() -> Pod:
    return next(pod for pod in pods(manifests("multi-node")) if pod.role == "learner")


def passes(pod: Pod, kind: str, node: int, port: int) -> bool:
    """The probe of one node, whose learner is at `port`."""
    command = [word.replace(":9400", f":{port}") for word in pod.containers[0][kind]["exec"]["command"]]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(command, env={"PATH": path, "NODE_RANK": str(node)}, capture_output=True).returncode == 0


def test_the_first_node_is_what_its_learner_says(pod: Pod, learner: Learner, server: Server) -> None:
    for ready, healthy in ((False, True), (True, True), (True, False)):
        learner.state = {"ready": ready, "healthy": healthy}
        assert passes(pod, "startupProbe", 0, server.port) == ready
        assert passes(pod, "readinessProbe", 0, server.port) == ready
        assert passes(pod, "livenessProbe", 0, server.port) == healthy


def test_a_node_that_serves_nothing_passes_unless_it_is_the_first(pod: Pod, server: Server) -> None:
    server.stop()
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert passes(pod, kind, 1, server.port)
        assert not passes(pod, kind, 0, server.port)
