"""Every metric by its name, its unit and its labels, and what it says after what was done."""

from __future__ import annotations

import math
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY, Gauge, Metric
from prometheus_client.parser import text_string_to_metric_families

from broker.ledger import VERDICTS
from broker.schema import Rollout, RolloutGroup, VersionSpan, tombstone
from broker.schema import Ticket as Permission
from consumer.record import StepTally
from monitoring.metrics import MOST_LABELS, GeneratorMetrics, LearnerMetrics
from monitoring.standing import WAITING
from tests.consumer.one_step import step_stats

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
    "length",
    "name",
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
        completions_by_length={2: 3, 8: 1},
        staleness_by_length={2: 1.0, 8: 3.0},
        phase_seconds={"pack": 0.25, "forward_backward": 2.0},
        flops=6e9,
    )
    metrics.observe_settings({"max_staleness": 4})
    tally.step(figures, step=7, version=6, buffer=3, publish_seconds=0.1, curriculum=CURRICULUM)
    tally.evaluation({"pass_at_1": 0.25, "pass_at": {"4": 0.5}, "majority_at": {"4": 0.375}, "by": BY})
    tally.evaluation({"pass_at_1": None, "pass_at": {}, "majority_at": {}, "by": []})
    metrics.waiting("ticket", "t0000000042")
    with metrics.phase("claim"):
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
    metrics.pause_seconds.observe(0.05)
    with metrics.phase("sample"):
        metrics.slots.set(4)
    return metrics


@pytest.fixture(params=["learner", "generator"])
def metrics(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
    return learner(tmp_path) if request.param == "learner" else generator()


def get(port: int, path: str) -> tuple[int, str | None, str]:
    connection = HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.getheader("Content-Type"), body


def value(families: dict[str, Metric], name: str, /, **labels: str) -> float:
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
    assert value(families, "headrace_learner_completions_total", length="2") == 3
    assert value(families, "headrace_learner_completions_staleness_versions_total", length="2") == 3
    assert value(families, "headrace_learner_completions_staleness_versions_total", length="8") == 3
    assert value(families, "headrace_learner_phase_seconds_total", phase="forward_backward") == 2
    assert value(families, "headrace_learner_phase_seconds_total", phase="optimizer") == 0, "there from the start"
    assert value(families, "headrace_learner_flops_total") == 6e9
    assert math.isnan(value(families, "headrace_learner_mfu")), "of a device whose peak nobody knows"
    assert value(families, "headrace_learner_setting", name="max_staleness") == 4
    assert value(families, "headrace_learner_process_resident_memory_bytes") > 1e6


def test_what_the_generator_did_is_what_is_shown() -> None:
    families = {family.name: family for family in generator().registry.collect()}
    assert value(families, "headrace_generator_groups_total", kind="train") == 3
    assert value(families, "headrace_generator_groups_total", kind="eval") == 1
    assert value(families, "headrace_generator_failed_groups_total") == 1
    assert value(families, "headrace_generator_tokens_total", kind="train") == 20
    assert value(families, "headrace_generator_rollouts_total") == 4, "of training alone"
    assert value(families, "headrace_generator_reward_total") == 2, "a counter cannot take a penalty back"
    assert value(families, "headrace_generator_penalty_total") == 2
    assert value(families, "headrace_generator_reward_component_total", component="formatted") == 4
    assert value(families, "headrace_generator_reward_component_total", component="correct") == 2
    assert value(families, "headrace_generator_penalty_component_total", component="correct") == 2
    assert value(families, "headrace_generator_tickets_total", event="failed") == 0, "there from the start"
    assert value(families, "headrace_generator_truncated_total") == 6
    assert value(families, "headrace_generator_completion_length_tokens_count") == 6
    assert value(families, "headrace_generator_in_flight_groups") == 0


def test_what_is_under_way_in_a_generator_is_shown_while_it_is() -> None:
    shown = GeneratorMetrics()

    def under_way(phase: str) -> float:
        return value(
            {family.name: family for family in shown.registry.collect()}, "headrace_generator_in_phase", phase=phase
        )

    with shown.phase("sample"), shown.phase("sample"), shown.phase("refresh"):
        assert (under_way("sample"), under_way("refresh"), under_way("verify")) == (2, 1, 0)
    assert (under_way("sample"), under_way("refresh")) == (0, 0)


def test_components_beyond_a_bound_share_a_series() -> None:
    shown = GeneratorMetrics()
    for number in range(MOST_LABELS + 3):
        rollout = replace(group().rollouts[0], components={f"c{number}": 1.0})
        shown.observe_group(replace(group(), rollouts=(rollout,)))
    families = {family.name: family for family in shown.registry.collect()}
    series = [s for s in families["headrace_generator_reward_component"].samples if s.name.endswith("_total")]
    assert len(series) == MOST_LABELS + 1
    assert value(families, "headrace_generator_reward_component_total", component="other") == 3


def test_what_a_library_counts_by_itself_is_shown_after_ours_while_it_is_there() -> None:
    shown = GeneratorMetrics()
    shown.show_vllm()
    ours = [family.name for family in shown.registry.collect()]
    queue = Gauge("vllm:num_requests_waiting", "As vLLM has it.", ["engine"])
    try:
        queue.labels(engine="0").set(7)
        *before, last = shown.registry.collect()
        assert [family.name for family in before] == ours
        assert [(s.name, s.labels, s.value) for s in last.samples] == [
            ("vllm:num_requests_waiting", {"engine": "0"}, 7.0)
        ]
    finally:
        REGISTRY.unregister(queue)
    assert [family.name for family in shown.registry.collect()] == ours, "an engine that is gone shows nothing"


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
    with pytest.raises(ZeroDivisionError), shown.phase("claim"):
        raise ZeroDivisionError
    families = {family.name: family for family in shown.registry.collect()}
    assert value(families, "headrace_learner_phase_seconds_total", phase="claim") > 0
