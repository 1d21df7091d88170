"""The books as metrics: what is shown of a run, when the log speaks, what a Redis that is away costs.

With the monitor's rights alone: tests/broker/test_acl.py. Beside a run: tests/deploy/test_launcher.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library
import structlog
from prometheus_client import Metric

from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import VERDICTS
from broker.settings import BrokerSettings
from consumer.dispatch import Dispatch
from monitoring.exporter import Exporter, admitted
from monitoring.metrics import ExporterMetrics
from monitoring.server import serve
from tests.consumer.desk import Desk, ids, publish, trained
from tests.faults import Faulty
from tests.monitoring.test_metrics import HOST, get, scrape, value
from tests.ports import free_port
from tests.system.pipeline import ROOT, wait_until

LABELS = {"kind", "verdict", "place", "stream", "reason", "phase"}
ISSUED = 1_700_000_000.0


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def desk(redis: redis_library.Redis, keys: Keys, tmp_path: Path) -> Desk:
    return Desk(redis, keys, tmp_path)


@pytest.fixture
def exporter(desk: Desk, log: list[Any]) -> Exporter:
    return Exporter(desk.client, desk.keys, ExporterMetrics(), lambda: ISSUED + 42)


def shown(exporter: Exporter) -> dict[str, Metric]:
    return {family.name: family for family in exporter.metrics.registry.collect()}


def figure(exporter: Exporter, name: str, **labels: str) -> float:
    return value(shown(exporter), f"headrace_{name}", **labels)


def under_way(desk: Desk) -> Dispatch:
    """Two groups trained and final, one failed; a ticket in every place; a late copy; a generator that lives."""
    dispatch = desk.opened()
    dispatch.ledger._clock = lambda: ISSUED
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    dispatch.make_final(dispatch.journal, 1, dict(dispatch.entry_ids), 0)
    desk.claim()
    desk.bury(ids(2)[0])
    (arrival,) = desk.arrivals()
    assert arrival.group is not None
    dispatch.refuse(arrival, arrival.group.failed)  # its replacement waits, with those of the step
    desk.answer(*ids(3))
    assert not desk.publish(next(a.group for a in desk.rollouts.pending() if a.group is not None)), "a copy"
    desk.client.rpush(desk.keys.requeue, *ids(2, 2))
    desk.client.hset(desk.keys.generators, mapping={"lives": str(ISSUED + 60), "is gone": str(ISSUED)})
    return dispatch


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_a_run_that_balances_is_shown_as_it_is(desk: Desk, exporter: Exporter, log: list[Any]) -> None:
    dispatch = under_way(desk)
    exporter.look()
    balance = dispatch.ledger.balance()
    assert balance.balanced
    assert figure(exporter, "redis_up") == 1
    assert [figure(exporter, "ledger_balanced", kind=kind) for kind in ("train", "eval")] == [1, 1]
    assert figure(exporter, "ledger_astray_tickets", kind="train") == 0
    assert figure(exporter, "ledger_issued_tickets_total", kind="train") == 9
    settled = {v: figure(exporter, "ledger_settled_tickets_total", kind="train", verdict=v) for v in VERDICTS}
    assert settled == {"trained": 2, "degenerate": 0, "stale": 0, "failed": 1, "evaluated": 0}
    assert figure(exporter, "ledger_outstanding_tickets", kind="train") == 6 == 9 - sum(settled.values())
    places = {
        place: figure(exporter, "ledger_located_tickets", kind="train", place=place)
        for place in ("waiting", "claimed", "published")
    }
    assert places == {"waiting": len(balance.waiting), "claimed": len(balance.claimed), "published": 1}
    assert sum(places.values()) == 6
    assert figure(exporter, "stream_entries", stream="tickets", kind="train") == 5
    assert figure(exporter, "stream_entries", stream="rollouts", kind="train") == 1
    assert figure(exporter, "stream_pending_entries", stream="tickets", kind="train") == places["claimed"]
    assert figure(exporter, "stream_pending_entries", stream="rollouts", kind="train") == 1
    assert figure(exporter, "stream_pending_entries", stream="tickets", kind="eval") == 0
    assert figure(exporter, "dead_letters") == 1
    assert figure(exporter, "dead_letters_dropped_total") == 0
    assert figure(exporter, "requeued_tickets") == 2
    assert figure(exporter, "policy_version") == 1
    assert figure(exporter, "late_groups_total") == 1
    assert figure(exporter, "live_generators") == 1
    assert figure(exporter, "run_finished") == 0
    assert figure(exporter, "redis_used_memory_bytes") > 100_000
    assert figure(exporter, "redis_maxmemory_bytes") == 0
    assert log == [], "nothing to say"


def test_the_age_of_the_oldest_outstanding_ticket(desk: Desk, exporter: Exporter) -> None:
    dispatch = desk.dispatch()
    exporter.look()
    assert figure(exporter, "ledger_oldest_outstanding_seconds", kind="train") == 0
    dispatch.ledger._clock = lambda: ISSUED
    desk.upload(0)
    dispatch.open(0)
    exporter.look()
    assert figure(exporter, "ledger_oldest_outstanding_seconds", kind="train") == 42


def test_the_age_of_the_oldest_entry_of_a_stream(desk: Desk, exporter: Exporter) -> None:
    desk.dispatch()
    for seconds in (30, 20):
        desk.client.xadd(
            desk.keys.rollouts("train"), {"payload": b"x" * 99}, id=f"{int(ISSUED + 42 - seconds) * 1000}-0"
        )
    exporter.look()
    assert figure(exporter, "stream_oldest_entry_seconds", stream="rollouts", kind="train") == 30
    assert figure(exporter, "stream_oldest_entry_seconds", stream="rollouts", kind="eval") == 0


def test_the_end_of_a_run_is_a_figure(desk: Desk, exporter: Exporter) -> None:
    desk.opened()
    desk.client.set(desk.keys.finished, "solved")
    exporter.look()
    assert figure(exporter, "run_finished") == 1


def test_a_run_that_nobody_has_begun_is_all_noughts(redis: redis_library.Redis, keys: Keys, log: list[Any]) -> None:
    exporter = Exporter(redis, keys, ExporterMetrics())
    exporter.look()
    assert figure(exporter, "ledger_balanced", kind="train") == 1
    assert figure(exporter, "ledger_issued_tickets_total", kind="train") == 0
    assert figure(exporter, "stream_pending_entries", stream="rollouts", kind="train") == 0
    assert shown(exporter)["headrace_policy_version"].samples == [], "no version is not version 0"
    assert redis.keys("*") == [], "looking changes nothing"


def test_names_units_and_labels_are_those_of_the_house(desk: Desk, exporter: Exporter) -> None:
    under_way(desk)
    exporter.look()
    for family in exporter.metrics.registry.collect():
        assert family.name.startswith("headrace_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter") or sample.name.endswith("_created")
            assert sample.labels.keys() <= LABELS
            assert not any(name in label for label in sample.labels.values() for name in ids(*range(9)))


# -- the alarm --------------------------------------------------------------------------------------------------------


def test_an_entry_deleted_behind_the_learner_s_back_is_an_alarm_that_names_its_ticket_until_it_is_put_back(
    desk: Desk, exporter: Exporter, log: list[Any]
) -> None:
    desk.opened()
    exporter.look()
    entries: Any = desk.client.xrange(desk.keys.tickets("train"))
    entry_id, fields = entries[3]
    desk.client.xdel(desk.keys.tickets("train"), entry_id)
    for _ in range(3):
        exporter.look()
    assert figure(exporter, "ledger_balanced", kind="train") == 0
    assert figure(exporter, "ledger_balanced", kind="eval") == 1
    assert figure(exporter, "ledger_astray_tickets", kind="train") == 1
    (line,) = log
    assert (line["log_level"], line["event"]) == ("error", "the books do not balance")
    assert (line["kind"], line["tickets"], line["astray"]) == ("train", *ids(3), 1)
    desk.client.xadd(desk.keys.tickets("train"), fields)
    for _ in range(2):
        exporter.look()
    assert figure(exporter, "ledger_balanced", kind="train") == 1
    _, again = log
    assert (again["log_level"], again["event"], again["kind"]) == ("info", "the books balance again", "train")


def test_ten_ids_are_enough_for_a_line(desk: Desk, exporter: Exporter, log: list[Any]) -> None:
    desk.opened()
    desk.client.hset(desk.keys.unsettled("train"), mapping={f"ghost-{n:02d}": f"0 {ISSUED}" for n in range(12)})
    exporter.look()
    assert log[0]["tickets"].split() == [f"ghost-{n:02d}" for n in range(10)]
    assert log[0]["astray"] == 12


def test_counts_that_do_not_add_up_are_an_alarm_though_no_ticket_is_astray(
    desk: Desk, exporter: Exporter, log: list[Any]
) -> None:
    desk.opened()
    desk.client.hincrby(desk.keys.ledger("train"), "trained", 1)
    exporter.look()
    assert figure(exporter, "ledger_balanced", kind="train") == 0
    assert (log[0]["issued"], log[0]["settled"], log[0]["outstanding"], log[0]["astray"]) == (6, 1, 6, 0)


# -- a Redis that is away ---------------------------------------------------------------------------------------------


def test_a_redis_that_is_away_is_a_figure_and_old_ones_are_not_shown(tmp_path: Path, log: list[Any]) -> None:
    with Faulty(tmp_path / "redis") as server, connect(BrokerSettings(), server.url) as client:
        desk = Desk(client, Keys("run"), tmp_path)
        desk.opened()
        exporter = Exporter(client, Keys("run"), ExporterMetrics())
        exporter.look()
        server.crash()
        for _ in range(3):
            exporter.look()
        assert figure(exporter, "redis_up") == 0
        assert figure(exporter, "exporter_waiting", reason="Redis") == 1
        assert "headrace_ledger_balanced" not in shown(exporter), "an old figure is no figure"
        assert [line["event"] for line in log] == ["redis does not answer"]
        server.start()
        exporter.look()
        assert figure(exporter, "redis_up") == 1
        assert figure(exporter, "ledger_balanced", kind="train") == 1
        assert figure(exporter, "ledger_outstanding_tickets", kind="train") == 6


def test_one_that_refuses_us_is_refused_at_once_and_one_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis", password="a password of sixteen") as server:
        with connect(BrokerSettings(), server.url) as stranger, pytest.raises(Refused, match="wants a password"):
            admitted(stranger)
        with connect(BrokerSettings(password="a password of sixteen"), server.url) as known:
            admitted(known)
    with connect(BrokerSettings(), "redis://127.0.0.1:1") as away:
        admitted(away)


# -- the process ------------------------------------------------------------------------------------------------------


def test_health_says_the_same_and_turns_red_only_when_nobody_looks_any_more() -> None:
    now = [1000.0]
    metrics = ExporterMetrics(stall_seconds=600.0, clock=lambda: now[0])
    server = serve(metrics, HOST, free_port(), metrics.health)
    try:
        metrics.observe(None)
        now[0] += 599
        status, _, body = get(server.port, "/healthz")
        said = json.loads(body)
        assert (status, said["role"], said["redis_up"], said["waiting"]["reason"]) == (200, "exporter", False, "Redis")
        metrics.observe(None)
        now[0] += 599
        assert get(server.port, "/healthz")[0] == 200, "Redis is still away: to start us again would cure nothing"
        now[0] += 1
        assert get(server.port, "/healthz")[0] == 503
    finally:
        server.stop()


def test_the_process_serves_a_run_through_a_crash_of_redis_and_ends_when_told(tmp_path: Path) -> None:
    with Faulty(tmp_path / "redis") as server, connect(BrokerSettings(), server.url) as client:
        Desk(client, Keys("tiny"), tmp_path / "policy").opened()
        port = free_port()
        process = started(server.url, port, tmp_path / "log")
        try:
            wait_until(lambda: up(port) == 1, "it shows a run", 30)
            assert value(scrape(port), "headrace_ledger_issued_tickets_total", kind="train") == 6
            server.crash()
            wait_until(lambda: up(port) == 0, "it says that Redis is away", 30)
            server.start()
            wait_until(lambda: up(port) == 1, "it is back", 30)
            assert json.loads(get(port, "/healthz")[2])["balanced"] == {"train": True, "eval": True}
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    said = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert said == ["redis does not answer"]


def test_without_a_port_there_is_nothing_to_do(tmp_path: Path) -> None:
    process = started("redis://127.0.0.1:1", 0, tmp_path / "log")
    assert process.wait(30) == 2
    line = "headrace: monitoring.exporter_port is 0: there is nothing to export to: give it a port, such as 9401\n"
    assert (tmp_path / "log").read_text() == line


def started(url: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "monitoring.exporter", "recipes/tiny.toml", "--broker.url", url]
    command += ["--monitoring.exporter_port", str(port), "--monitoring.exporter_seconds", "0.1"]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env={**os.environ})


def up(port: int) -> float | None:
    try:
        return value(scrape(port), "headrace_redis_up")
    except OSError:  # not there yet
        return None
