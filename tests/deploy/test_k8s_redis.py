"""Redis and the exporter as the manifests start them: command, configuration, variables, probes, on a real server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library
from redis import exceptions as errors

from broker import acl
from broker.binary import find_binary
from broker.connection import connect
from broker.keys import Keys
from broker.settings import BrokerSettings
from tests.deploy.k8s.build import ROOT, Pod, manifests, needs_kubectl, of, pods, quantity
from tests.ports import free_port
from tests.system.pipeline import wait_until

pytestmark = needs_kubectl
KEPT = Keys("demo").finished
CLI = shutil.which("valkey-cli") or shutil.which("redis-cli")
needs_cli = pytest.mark.skipif(CLI is None, reason="no valkey-cli or redis-cli (Debian: apt install redis-tools)")


@pytest.fixture
def pod() -> Pod:
    """The one of the overlay `cpu`."""
    return next(pod for pod in pods(manifests("cpu")) if pod.role == "redis")


class Place:
    """The volumes of the pod as folders, and the port that it has there."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        self.folders = {
            "/run/secrets/headrace": root / "secrets",
            "/etc/headrace": root / "config",
            "/data": root / "data",
        }
        for folder in self.folders.values():
            folder.mkdir()
        acl.write(self.folders["/run/secrets/headrace"])
        (bin_ := root / "bin").mkdir()
        if CLI is not None:
            (bin_ / "valkey-cli").symlink_to(CLI)
        self.environ = {"PATH": f"{bin_}:/usr/bin:/bin", "LANG": "C"}

    def here(self, text: str) -> str:
        """What is written for the pod, for this place."""
        for path, folder in self.folders.items():
            text = text.replace(path, str(folder))
        return text.replace("port 6379", f"port {self.port}").replace("valkey-cli ", f"valkey-cli -p {self.port} ")

    def client(self, user: str) -> redis_library.Redis:
        settings = BrokerSettings(password_file=self.folders["/run/secrets/headrace"] / f"{user}.password")
        return connect(settings, f"redis://{user}@127.0.0.1:{self.port}")


@contextmanager
def started(pod: Pod, place: Place, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The container, without one."""
    container = pod.containers[0]
    config = next(one for one in of(manifests("cpu"), "ConfigMap") if "redis.conf" in one["data"])["data"]["redis.conf"]
    (place.folders["/etc/headrace"] / "redis.conf").write_text(place.here(config).replace("* -::*", "127.0.0.1"))
    arguments = [place.here(word.replace("$(MAXMEMORY)", pod.environment["MAXMEMORY"])) for word in container["args"]]
    assert container["command"] == ["valkey-server"]
    process = subprocess.Popen(
        [str(find_binary()), *arguments, *more], stdout=subprocess.DEVNULL, cwd=place.folders["/data"]
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def probe(pod: Pod, place: Place, kind: str) -> int:
    """The exit status of a probe."""
    command = pod.containers[0][kind]["exec"]["command"]
    done = subprocess.run([*command[:-1], place.here(command[-1])], env=place.environ, capture_output=True, timeout=20)
    return done.returncode


@needs_cli
def test_it_keeps_what_it_acknowledged_and_lets_in_whom_it_should(pod: Pod, tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert probe(pod, place, "readinessProbe") != 0
    with started(pod, place):
        wait_until(lambda: probe(pod, place, "startupProbe") == 0, "Redis has started")
        assert probe(pod, place, "readinessProbe") == probe(pod, place, "livenessProbe") == 0
        with place.client("monitor") as monitor:
            memory: Any = monitor.info("memory")
            assert memory["maxmemory"] == quantity(pod.environment["MAXMEMORY"])
            assert memory["maxmemory_policy"] == "noeviction"
            with pytest.raises(errors.NoPermissionError):
                monitor.flushall()
        with (
            redis_library.Redis(port=place.port) as stranger,
            pytest.raises(errors.AuthenticationError),
        ):
            stranger.ping()
        with place.client("admin") as admin:
            admin.set(KEPT, "1")
    with started(pod, place):
        wait_until(lambda: probe(pod, place, "startupProbe") == 0, "Redis has started")
        with place.client("admin") as admin:
            assert admin.get(KEPT) == b"1"


@needs_cli
def test_while_it_loads_it_is_not_ready(pod: Pod, tmp_path: Path) -> None:
    place = Place(tmp_path)
    with started(pod, place):
        wait_until(lambda: probe(pod, place, "startupProbe") == 0, "Redis has started")
        with place.client("admin") as admin, admin.pipeline(transaction=False) as pipe:
            for number in range(20_000):
                pipe.set(f"{KEPT}{number}", "x")
            pipe.execute()
    with started(pod, place, "--key-load-delay", "500"), place.client("monitor") as monitor:  # ten seconds of loading
        wait_until(lambda: loading(monitor), "Redis loads its data")
        assert probe(pod, place, "readinessProbe") != 0
        assert loading(monitor)


@needs_cli
def test_the_exporter_finds_it_and_has_what_autoscaling_asks_for(pod: Pod, tmp_path: Path) -> None:
    place, port = Place(tmp_path), free_port()
    exporter = next(pod for pod in pods(manifests("cpu")) if pod.role == "exporter")
    recipe = next(one for one in of(manifests("cpu"), "ConfigMap") if "recipe.toml" in one["data"])
    (place.folders["/etc/headrace"] / "recipe.toml").write_text(recipe["data"]["recipe.toml"])
    given = {name: place.here(value) for name, value in exporter.environment.items()}
    given["HEADRACE_BROKER__URL"] = given["HEADRACE_BROKER__URL"].replace("@redis:6379", f"@127.0.0.1:{place.port}")
    given |= {"HEADRACE_MONITORING__EXPORTER_PORT": str(port), "HEADRACE_MONITORING__HOST": "127.0.0.1"}
    container = exporter.containers[0]
    assert container["command"][:3] == ["tini", "--", "python"]
    command = [sys.executable, *container["command"][3:], *map(place.here, container["args"])]
    with started(pod, place):
        wait_until(lambda: probe(pod, place, "startupProbe") == 0, "Redis has started")
        process = subprocess.Popen(command, env=os.environ | given, cwd=ROOT)
        try:
            ready, alive = (container[kind]["httpGet"]["path"] for kind in ("readinessProbe", "livenessProbe"))
            wait_until(lambda: asked(port, ready)[0] == asked(port, alive)[0] == 200, "the exporter has read Redis")
            metrics = asked(port, "/metrics")[1]
            assert "\nheadrace_redis_up 1.0\n" in metrics
            assert '\nheadrace_ledger_located_tickets{kind="train",place="claimed"} 0.0\n' in metrics
            assert "\nheadrace_run_finished 0.0\n" in metrics
        finally:
            process.terminate()
            process.wait(20)


def asked(port: int, path: str) -> tuple[int, str]:
    """What is answered; status 0 while nobody does."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:  # not there yet
        return 0, ""
    finally:
        connection.close()


def loading(client: redis_library.Redis) -> bool:
    """It answers, and says so."""
    try:
        said: Any = client.info("persistence")
    except errors.ConnectionError:  # not there yet
        return False
    return bool(said["loading"])
