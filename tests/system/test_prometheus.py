"""Debian's own Prometheus on a real run: every recorded figure has data, and alerts fire when it is provoked and clear.

Production's configuration and rules are read as they are and hurried, which is all that is changed of them: targets are
the run's ports, intervals a second, every window and every `for` seconds instead of minutes (`hurried`). What the
minutes do is for `promtool test rules` to show (tests/monitoring/test_rules.py).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from monitoring.prometheus_api import Prometheus
from monitoring.services import Service, prometheus
from tests.monitoring.scraping import binary
from tests.monitoring.test_rules import FOLDER, RECORDED
from tests.ports import free_port
from tests.system.pipeline import Pipeline, wait_until

yaml = pytest.importorskip("yaml")
WINDOW = 8  # seconds instead of minutes: some scrapes must fit into it
WITHOUT_DATA = {
    "headrace:learner_mfu:ratio5m": "nobody knows what a CPU can do",
    "headrace:redis_memory:ratio": "no limit is set",
}
NAMES = ("learner", "generator", "exporter")


def hurried(rules: str) -> str:
    """The same rules for a run of seconds: windows, the age of a step, and no patience."""
    rules = re.sub(r"\[\d+[mh](:\d+s)?\]", lambda found: f"[{WINDOW}s:1s]" if found[1] else f"[{WINDOW}s]", rules)
    rules = re.sub(r"for: \d+m", "for: 0s", rules)
    assert "> 900\n" in rules or "NoStep" not in rules
    return rules.replace("> 900\n", "> 4\n").replace("> 200)", "> 0)")


class Hurried:
    """A Prometheus with production's configuration, hurried."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder, self.ports, self.port = folder, ports, free_port()
        self.asked = Prometheus(f"http://127.0.0.1:{self.port}")

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

    def running(self) -> Service:
        """The server, while a block runs."""
        return prometheus(binary(), self.configure(), self.folder / "data", self.port)

    def values(self, expression: str) -> list[float]:
        """What an expression comes to now."""
        return [series.values[0] for series in self.asked.now(expression)]

    def firing(self) -> dict[str, Any]:
        """Alerts that fire, by name, with their annotations."""
        raised = [alert for rule in self.asked.alert_rules() for alert in rule.alerts]
        return {alert.labels["alertname"]: alert.annotations for alert in raised if alert.state == "firing"}

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
    watch = Hurried(tmp_path / "prometheus", ports)
    broken = ("DeadLetters", "LedgerOutOfBalance", "RedisNearItsMemory")
    gone = ("GeneratorLost", "NoLiveGenerator", "NoStep")
    with Pipeline(tmp_path / "runs", flags) as run, watch.running():
        run.learner()
        run.generator()
        run.start("monitoring.exporter", "exporter")
        recorded = set(RECORDED) - WITHOUT_DATA.keys()
        wait_until(
            lambda: all(
                (found := watch.values(name)) and all(math.isfinite(value) for value in found) for name in recorded
            ),
            "every recorded figure has data",
            40,
        )
        assert watch.values("headrace:learner_tokens:rate1m > 0")
        watch.wait(quiet=(*broken, *gone, "LearnerLost"))

        run.client.xadd(run.keys.rollouts("train"), {"ticket_id": "nobody's", "payload": b"\x93garbage"})
        run.client.hincrby(run.keys.ledger("train"), "degenerate", 1)
        used: Any = run.client.info("memory")
        run.client.config_set("maxmemory", int(used["used_memory"] / 0.9))
        watch.wait(fires=broken[:1])  # the first one lasts a window, the others until somebody mends it
        said = watch.wait(fires=broken[1:])
        assert said["LedgerOutOfBalance"]["summary"] == "The books of the train tickets do not balance."
        assert re.fullmatch(r"Redis uses (8[5-9]|9\d)[.\d]*% of .*", said["RedisNearItsMemory"]["summary"])
        run.client.config_set("maxmemory", 0)  # first: in the meantime it may have become full
        run.client.hincrby(run.keys.ledger("train"), "degenerate", -1)
        watch.wait(quiet=broken)

        run.processes["generator"].kill()
        watch.wait(fires=gone[:1])
        watch.wait(fires=gone[1:])
        run.generator("another")
        watch.wait(quiet=gone)

        run.processes["learner"].kill()
        watch.wait(fires=("LearnerLost",))
        run.processes["learner"].wait()
        run.learner()
        watch.wait(quiet=("LearnerLost",))
        assert run.ledger().balance().balanced
