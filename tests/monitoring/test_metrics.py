"""Every metric by its name, and the small server that shows them: what Prometheus reads, and what a person asks for."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from broker.errors import Refused
from broker.ledger import VERDICTS
from broker.schema import Rollout, RolloutGroup, VersionSpan, tombstone
from broker.schema import Ticket as Permission
from consumer.record import StepTally
from monitoring.metrics import WAITING, GeneratorMetrics, LearnerMetrics, Server, serve
from tests.consumer.one_step import step_stats
from tests.ports import free_port

Both = GeneratorMetrics | LearnerMetrics
HOST = "127.0.0.1"
CURRICULUM = {"epochs": {"sums": 1.5}, "problems": {"never": 2, "sometimes": 3, "always": 0}}
LABELS = {
    "k",
    "part",
    "state",
    "task",
    "level",
    "phase",
    "reason",
    "kind",
    "event",
    "component",
    "verdict",
    "le",
    "staleness",
}

BY = [{"task": "sums", "level": "hard", "pass_at_1": 0.125}, {"task": "sums", "level": "easy", "pass_at_1": 0.375}]


def group(kind: Any = "train", reward: float = 1.0) -> RolloutGroup:
    tokens, logprobs = np.arange(1, 6, dtype=np.int32), np.zeros(5, np.float32)
    components = {"correct": reward, "formatted": 1.0}
    rollout = Rollout(tokens, logprobs, (VersionSpan(0, 0, 5),), reward, components, truncated=True)
    return RolloutGroup("t0000000042", kind, 0, tokens, (rollout, rollout), "host-1")


def learner(folder: Path) -> LearnerMetrics:
    """After a step, an evaluation and every verdict, told as the learner tells it."""
    metrics = LearnerMetrics()
    tally = StepTally(folder / "steps.jsonl", 10, metrics)
    for verdict in VERDICTS:
        tally.consumed(group(), verdict)
    tally.failed()
    figures = step_stats(
        loss=0.5,
        skipped=True,
        tokens=30,
        staleness_histogram={1: 20, 3: 10},
        mismatch_by_staleness={1: 0.02, 3: 0.05},
        clip_fraction_negative=0.25,
    )
    tally.step(figures, step=7, version=6, buffer=3, publish_seconds=0.1, curriculum=CURRICULUM)
    tally.evaluation({"pass_at_1": 0.25, "pass_at": {"4": 0.5}, "majority_at": {"4": 0.375}, "by": BY})
    tally.evaluation({"pass_at_1": None, "pass_at": {}, "majority_at": {}, "by": []})
    metrics.waiting("ticket", "t0000000042")
    with metrics.phase("train"):
        metrics.progress()
    return metrics


def generator() -> GeneratorMetrics:
    """After groups of both kinds, one of them failed, and everything that may happen to a ticket."""
    metrics = GeneratorMetrics()
    for one in (group(), group("eval"), group(reward=-1.0), tombstone(Permission("t1", 0, 0, 0), "no problem")):
        metrics.observe_group(one)
    for event in ("claimed", "published", "late", "lost", "handed_back"):
        metrics.tickets.labels(event=event).inc()
    metrics.refresh_seconds.observe(0.2)
    with metrics.phase("sample"):
        metrics.slots.set(4)
    return metrics


@pytest.fixture(params=["learner", "generator"])
def metrics(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
    return learner(tmp_path) if request.param == "learner" else generator()


@pytest.fixture
def server(metrics: Both) -> Iterator[Server]:
    started = serve(metrics, HOST, free_port(), metrics.health)
    yield started
    started.stop()


def get(port: int, path: str) -> tuple[int, str | None, str]:
    connection = HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.getheader("Content-Type"), body


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [s for family in families.values() for s in family.samples if s.name == name and s.labels == labels]
    assert len(samples) == 1, name
    return float(samples[0].value)


def scrape(port: int) -> dict[str, Metric]:
    status, kind, body = get(port, "/metrics")
    assert status == 200
    assert kind is not None
    assert kind.startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(body)}


# -- names ------------------------------------------------------------------------------------------------------------


def test_every_metric_is_ours_and_says_what_it_is(metrics: Both) -> None:
    families = list(metrics.registry.collect())
    assert len(families) > 10
    for family in families:
        assert family.name.startswith(f"headrace_{metrics.role}_")
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        else:
            assert not family.name.endswith("_total")


def test_units_are_base_units(metrics: Both) -> None:
    for family in metrics.registry.collect():
        assert not family.name.endswith(("_ms", "_milliseconds", "_minutes", "_percent", "_mb", "_kb"))
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_tokens", "_versions"))


def test_labels_are_few_and_no_ticket_is_one(metrics: Both) -> None:
    for family in metrics.registry.collect():
        for sample in family.samples:
            assert sample.labels.keys() <= LABELS
            assert not any("t0000000042" in label for label in sample.labels.values())
            if "reason" in sample.labels:
                assert sample.labels["reason"] in WAITING


def test_two_of_a_kind_can_live_in_one_process() -> None:
    assert GeneratorMetrics().registry is not GeneratorMetrics().registry


# -- what they say ----------------------------------------------------------------------------------------------------


def test_what_the_learner_did_is_what_is_shown(tmp_path: Path) -> None:
    shown = learner(tmp_path)
    families = {family.name: family for family in shown.registry.collect()}
    assert value(families, "headrace_learner_step") == 7
    assert value(families, "headrace_learner_policy_version") == 6
    assert value(families, "headrace_learner_loss") == 0.5
    assert value(families, "headrace_learner_buffer") == 3
    assert value(families, "headrace_learner_tokens_total") == 30
    assert value(families, "headrace_learner_skipped_updates_total") == 1
    assert value(families, "headrace_learner_eval_pass_at_1") == 0.25, "an evaluation without answers changes nothing"
    assert value(families, "headrace_learner_eval_pass_at", k="4") == 0.5
    assert value(families, "headrace_learner_eval_majority_at", k="4") == 0.375
    assert value(families, "headrace_learner_eval_by_pass_at_1", task="sums", level="hard") == 0.125
    assert value(families, "headrace_learner_curriculum_epochs", part="sums") == 1.5
    assert value(families, "headrace_learner_curriculum_problems", state="sometimes") == 3
    assert value(families, "headrace_learner_groups_total", verdict="trained") == 1
    assert value(families, "headrace_learner_groups_total", verdict="failed") == 2
    assert value(families, "headrace_learner_staleness_versions_count") == 30
    assert value(families, "headrace_learner_staleness_versions_sum") == 50
    assert value(families, "headrace_learner_mismatch", staleness="3") == 0.05
    assert value(families, "headrace_learner_clip_fraction_negative") == 0.25
    assert math.isnan(value(families, "headrace_learner_mismatch_engine") or 0.0), "no token was of this version"
    assert value(families, "headrace_learner_waiting", reason="ticket") == 1


def test_what_the_generator_did_is_what_is_shown() -> None:
    families = {family.name: family for family in generator().registry.collect()}
    assert value(families, "headrace_generator_groups_total", kind="train") == 3
    assert value(families, "headrace_generator_groups_total", kind="eval") == 1
    assert value(families, "headrace_generator_failed_groups_total") == 1
    assert value(families, "headrace_generator_tokens_total", kind="train") == 20
    assert value(families, "headrace_generator_rollouts_total") == 4, "of training alone"
    assert value(families, "headrace_generator_reward_total") == 2, "a counter cannot take a penalty back"
    assert value(families, "headrace_generator_reward_component_total", component="formatted") == 4
    assert value(families, "headrace_generator_truncated_total") == 6
    assert value(families, "headrace_generator_completion_length_tokens_count") == 6
    assert value(families, "headrace_generator_in_flight_groups") == 0


def test_a_process_waits_for_one_thing_at_a_time() -> None:
    shown = LearnerMetrics()
    for reason in (*WAITING[1:], *WAITING):
        shown.waiting(reason)
        samples = [s for family in shown.registry.collect() for s in family.samples if "reason" in s.labels]
        assert {s.labels["reason"] for s in samples if s.value} == {reason}


def test_waiting_on_counts_from_its_beginning_and_another_ticket_begins_anew() -> None:
    now = [1000.0]
    shown = LearnerMetrics(clock=lambda: now[0])
    shown.waiting("ticket", "t1")
    now[0] += 5
    shown.waiting("ticket", "t1")
    assert shown.health()["waiting"] == {"reason": "ticket", "detail": "t1", "since_seconds": 5.0}
    shown.waiting("ticket", "t2")
    assert shown.health()["waiting"]["since_seconds"] == 0.0
    assert shown.health()["last_progress_seconds"] == 5.0
    shown.progress()
    assert shown.health()["last_progress_seconds"] == 0.0


def test_a_phase_is_counted_even_if_it_fails() -> None:
    shown = LearnerMetrics()
    with pytest.raises(ZeroDivisionError), shown.phase("train"):
        raise ZeroDivisionError
    families = {family.name: family for family in shown.registry.collect()}
    assert value(families, "headrace_learner_phase_seconds_total", phase="train") > 0


# -- the server -------------------------------------------------------------------------------------------------------


def test_prometheus_can_read_what_is_served(server: Server, metrics: Both) -> None:
    served = scrape(server.port)
    known = {family.name for family in metrics.registry.collect()}
    assert {name.removesuffix("_created") for name in served} == known
    assert all(family.documentation for name, family in served.items() if name in known)


def test_health_is_json_and_names_what_the_process_waits_for(server: Server, metrics: Both) -> None:
    status, kind, body = get(server.port, "/healthz")
    assert (status, kind) == (200, "application/json")
    health = json.loads(body)
    assert health.keys() == {"role", "healthy", "waiting", "last_progress_seconds"}
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
