"""Alerts as a real Prometheus has them: whose they are, how urgent, and when nothing can be known of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from monitoring.alarms import Alarm, Alarms, alarms_of
from monitoring.metrics import GeneratorMetrics, LearnerMetrics
from tests.monitoring.scraping import scraping, target
from tests.monitoring.strangers import saying
from tests.monitoring.test_endpoints import served
from tests.ports import free_port
from tests.system.pipeline import wait_until


def asked(alarm: Alarm) -> Alarms:
    """What it says first."""
    wait_until(lambda: alarm.said is not None, "Prometheus was asked")
    assert alarm.said is not None
    return alarm.said


def test_alerts_of_the_run_are_told_the_most_urgent_first_and_those_of_others_are_not(tmp_path: Path) -> None:
    learner, other, generator = LearnerMetrics(), LearnerMetrics(), GeneratorMetrics()
    learner.last_step.set(1e9)  # a long time ago
    other.last_step.set(2e9)
    learner.gauges["ess"].set(0.1)
    other.gauges["ess"].set(1.0)
    with served(learner) as one, served(other) as two, served(generator) as three:
        where = f"127.0.0.1:{three.port}"
        targets = target("learner", one.port), target("generator", three.port), target("learner", two.port, "other")
        with scraping(tmp_path, *targets) as server:

            def names(run: str) -> list[str]:
                return [alert.name for alert in alarms_of(server.asked, run).alerts]

            wait_until(lambda: "NoStep" in names("demo"), "a run without steps raises an alert")
            none = 'headrace_generator_refresh_failures_total{run="demo"} == 0'  # unseen, there is nothing to increase
            wait_until(lambda: server.asked.now(none), "the generator was scraped before it fails")
            generator.refresh_failures.inc(9)
            wait_until(
                lambda: names("demo") == ["NoStep", "RefreshFailing", "EffectiveSampleSizeLow"], "all are raised"
            )
            alarms = alarms_of(server.asked, "demo")
            assert [(alert.severity, alert.pending) for alert in alarms.alerts] == [
                ("critical", False),
                ("warning", False),
                ("warning", True),  # fires after five minutes
            ]
            assert [alert.where for alert in alarms.alerts] == ["", where, ""]
            assert all(0 <= alarms.now - alert.since < 120 for alert in alarms.alerts)
            assert names("other") == []
            assert alarms_of(server.asked, "other").unknown == ""
            assert alarms_of(server.asked, "third").unknown == "Prometheus does not scrape this run"

            shutil.rmtree(server.folder.path / "rules")
            server.service.stop()
            server.restart()
            assert alarms_of(server.asked, "demo").unknown == "Prometheus has none of our rules"


def test_where_no_prometheus_is_the_remedy_is_named_and_nobody_waits() -> None:
    port = free_port()
    alarm = Alarm("127.0.0.1", port, "demo").start()
    try:
        assert asked(alarm) == Alarms(unknown=f"no Prometheus on :{port}, `make monitoring` starts one")
    finally:
        alarm.stop()


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>"])
def test_somebody_else_on_its_port_is_no_prometheus(body: bytes) -> None:
    with saying(body) as port:
        alarm = Alarm("127.0.0.1", port, "demo").start()
        try:
            assert asked(alarm).unknown.startswith("no Prometheus")
        finally:
            alarm.stop()
