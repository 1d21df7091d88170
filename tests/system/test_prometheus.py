"""Debian's own Prometheus on a real run: every recorded figure has data, and alerts fire when it is provoked and clear.

Production's configuration and rules are read as they are and hurried, which is all that is changed of them: targets are
the run's ports, intervals a second, every window and every `for` seconds instead of minutes (`hurried`). What the
minutes do is for `promtool test rules` to show (tests/monitoring/test_rules.py).
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.monitoring.test_rules import FOLDER, RECORDED
from tests.ports import free_port
from tests.system.pipeline import Pipeline, wait_until

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no Prometheus (Debian: apt install prometheus)"
)
WINDOW = 8  # seconds instead of minutes: some scrapes must fit into it
WITHOUT_DATA = {
    "headrace:learner_mfu:ratio5m": "nobody knows what a CPU can do",
    "headrace:redis_memory:ratio": "no limit is set",
}
NAMES = ("learner", "generator", "exporter")


def hurried(rules: str) -> str:
    """The same rules for a run of seconds: windows, the age of a step, and no patience."""
    rules = re.sub(r"\[\d+[mh]\]", f"[{WINDOW}s]", rules)
    rules = re.sub(r"for: \d+m", "for: 0s", rules)
    assert "> 900\n" in rules or "NoStep" not in rules
    return rules.replace("> 900\n", "> 4\n")


class Prometheus:
    """One server, asked over its own API."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder, self.ports, self.port = folder, ports, free_port()

    def configure(self) -> Path:
        """Production's configuration with this run's addresses."""
        self.folder.mkdir()
        document = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        for name in document["rule_files"]:
            (self.folder / name).write_text(hurried((FOLDER / name).read_text()))
        document["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
        assert {job["job_name"] for job in document["scrape_configs"]} == set(NAMES)
        for job in document["scrape_configs"]:
            job["static_configs"][0]["targets"] = [f"127.0.0.1:{self.ports[job['job_name']]}"]
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(document))
        return path

    @contextmanager
    def running(self) -> Iterator[None]:
        """The server, while the block runs."""
        command = [
            "prometheus",
            "--config.file",
            str(self.configure()),
            "--storage.tsdb.path",
            str(self.folder / "data"),
        ]
        command += ["--web.listen-address", f"127.0.0.1:{self.port}", "--log.level", "warn"]
        with (self.folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                yield
            finally:
                process.kill()

    def get(self, path: str) -> Any:
        """The `data` of an answer; None while it is not up."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/api/v1/{path}")
            return json.loads(connection.getresponse().read()).get("data")
        except OSError:
            return None
        finally:
            connection.close()

    def values(self, expression: str) -> list[float]:
        """What an expression comes to now."""
        data = self.get(f"query?query={quote(expression)}")
        return [float(sample["value"][1]) for sample in data["result"]] if data else []

    def firing(self) -> dict[str, Any]:
        """Alerts that fire, by name, with their annotations."""
        data = self.get("alerts")
        alerts = data["alerts"] if data else []
        return {a["labels"]["alertname"]: a["annotations"] for a in alerts if a["state"] == "firing"}

    def wait(self, *, fires: tuple[str, ...] = (), quiet: tuple[str, ...] = ()) -> dict[str, Any]:
        """Until the one fire and the other do not."""
        seen: list[dict[str, Any]] = []

        def so() -> bool:
            seen[:] = [self.firing()]
            return set(fires) <= seen[0].keys() and not seen[0].keys() & set(quiet)

        try:
            wait_until(so, f"{fires} fire and {quiet} do not", 40)
        except AssertionError as error:
            raise AssertionError(f"{error}; firing: {sorted(seen[0])}") from None
        return seen[0]


def test_a_real_run_has_data_and_its_alerts_fire_and_clear(tmp_path: Path, taught: Path) -> None:
    ports = {name: free_port() for name in NAMES}
    flags = ["--run.model", str(taught), "--run.steps", "100000", "--broker.lease_seconds", "3"]
    flags += [
        "--monitoring.exporter_seconds",
        "0.5",
        "--learner.checkpoint_every",
        "5",
        "--learner.stop_when_solved",
        "false",
    ]
    flags += [flag for name, port in ports.items() for flag in (f"--monitoring.{name}_port", str(port))]
    prometheus = Prometheus(tmp_path / "prometheus", ports)
    broken = ("DeadLetters", "LedgerOutOfBalance", "RedisNearItsMemory")
    gone = ("GeneratorLost", "NoLiveGenerator", "NoStep")
    with Pipeline(tmp_path / "runs", flags) as run, prometheus.running():
        run.learner()
        run.generator()
        run.start("monitoring.exporter", "exporter")
        recorded = set(RECORDED) - WITHOUT_DATA.keys()
        wait_until(
            lambda: all(
                (found := prometheus.values(name)) and all(math.isfinite(value) for value in found) for name in recorded
            ),
            "every recorded figure has data",
            40,
        )
        assert prometheus.values("headrace:learner_tokens:rate1m > 0")
        prometheus.wait(quiet=(*broken, *gone, "LearnerLost"))

        run.client.xadd(run.keys.rollouts("train"), {"ticket_id": "nobody's", "payload": b"\x93garbage"})
        run.client.hincrby(run.keys.ledger("train"), "degenerate", 1)
        used: Any = run.client.info("memory")
        run.client.config_set("maxmemory", int(used["used_memory"] / 0.9))
        prometheus.wait(fires=broken[:1])  # the first one lasts a window, the others until somebody mends it
        said = prometheus.wait(fires=broken[1:])
        assert said["LedgerOutOfBalance"]["summary"] == "The books of the train tickets do not balance."
        assert re.fullmatch(r"Redis uses (8[5-9]|9\d)[.\d]*% of .*", said["RedisNearItsMemory"]["summary"])
        run.client.hincrby(run.keys.ledger("train"), "degenerate", -1)
        run.client.config_set("maxmemory", 0)
        prometheus.wait(quiet=broken)

        run.processes["generator"].kill()
        prometheus.wait(fires=gone[:1])
        prometheus.wait(fires=gone[1:])
        run.generator("another")
        prometheus.wait(quiet=gone)

        run.processes["learner"].kill()
        prometheus.wait(fires=("LearnerLost",))
        run.processes["learner"].wait()
        run.learner()
        prometheus.wait(quiet=("LearnerLost",))
        assert run.ledger().balance().balanced
