"""The line of a step: what is in it, over which groups, and that it can be read by anybody."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.schema import RolloutGroup
from consumer.figures import StepStats
from consumer.record import StepTally
from monitoring.metrics import LearnerMetrics
from tests.clock import Clock
from tests.consumer.groups import failed_group, rollout
from tests.consumer.one_step import step_stats

CURRICULUM = {"epochs": {"sums": 1.5}, "problems": {}}
STATS = step_stats(
    loss=-0.25, grad_norm=1.5, learning_rate=1e-5, skipped=False, tokens=9, padded_tokens=20, entropy=2.0, ess=0.9,
    ratio_mean=1.1, ratio_max=3.0, kl=0.01, truncation_fraction=0.1, truncation_fraction_negative=None,
    staleness_mean=1.5, staleness_max=3, staleness_histogram={0: 4, 3: 5}, mismatch_by_staleness={0: 0.001, 3: 0.02},
    mismatch_engine=0.001, mismatch_staleness=0.019, train_seconds=0.7,
)  # fmt: skip


class Desk:
    """A tally with its clock, its metrics and its file."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.metrics, self.path = Clock(100.0), LearnerMetrics(), folder / "runs" / "steps.jsonl"
        self.tally = StepTally(self.path, 5, self.metrics, self.clock)

    def step(self, step: int = 1, stats: StepStats = STATS) -> dict[str, Any]:
        self.tally.step(stats, step=step, version=step, buffer=2, publish_seconds=0.125, curriculum=CURRICULUM)
        return self.lines()[-1]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def answers(*rewards: float, length: int = 3, truncated: bool = False) -> RolloutGroup:
    made = tuple(rollout([1] * length, reward, truncated=truncated) for reward in rewards)
    return RolloutGroup("t0", "train", 0, np.array([1], np.int32), made)


def test_the_line_of_a_step_in_full(desk: Desk) -> None:
    desk.tally.consumed(answers(1.0, 0.0), "trained")
    desk.tally.waited(0.5)
    desk.tally.waited(0.25)
    desk.clock.now += 2.0
    assert desk.step() == {
        "time": 102.0, "step": 1, "steps": 5, "policy_version": 1,
        "reward": 0.5, "samples": 2, "groups": {"trained": 1, "degenerate": 0, "stale": 0, "failed": 0},
        "completion_tokens": 6, "completion_length": 3.0, "truncated_fraction": 0.0,
        "seconds": 2.0, "wait_seconds": 0.75, "publish_seconds": 0.125, "curriculum": CURRICULUM, "buffer": 2,
        "loop_seconds": {},
        "loss": -0.25, "grad_norm": 1.5, "learning_rate": 1e-5, "skipped": False, "tokens": 9, "padded_tokens": 20,
        "entropy": 2.0, "ess": 0.9, "ratio_mean": 1.1, "ratio_max": 3.0, "kl": 0.01, "clip_fraction": 0.0,
        "truncation_fraction": 0.1, "staleness_mean": 1.5, "staleness_max": 3, "staleness_histogram": {"0": 4, "3": 5},
        "train_seconds": 0.7, "sequence_ess": 1.0, "ratio_p01": 1.0, "ratio_p50": 1.0, "ratio_p99": 1.0, "kl_k1": 0.0,
        "clip_fraction_positive": 0.0, "clip_fraction_negative": 0.0, "truncation_fraction_positive": 0.0,
        "truncation_fraction_negative": None, "mask_fraction": 0.0, "mask_fraction_positive": 0.0,
        "mask_fraction_negative": 0.0, "mismatch_engine": 0.001, "mismatch_staleness": 0.019,
        "mismatch_by_staleness": {"0": 0.001, "3": 0.02}, "kl_reference": None, "advantage_mean": 0.0,
        "advantage_std": 1.0, "completions_by_length": {}, "staleness_by_length": {}, "phase_seconds": {}, "flops": 0.0,
        "mfu": None, "peak_flops": None,
    }  # fmt: skip


def test_the_reward_is_the_mean_over_all_groups_used_up_the_degenerate_ones_included(desk: Desk) -> None:
    """Trained groups alone stay near one half for ever, however good the model gets."""
    desk.tally.consumed(answers(1.0, 0.0), "trained")
    desk.tally.consumed(answers(1.0, 1.0, length=5, truncated=True), "degenerate")
    desk.tally.consumed(answers(1.0, 1.0), "stale")
    desk.tally.consumed(failed_group("t1"), "failed")
    desk.tally.failed()
    line = desk.step()
    assert line["reward"] == pytest.approx(5 / 6)
    assert line["samples"] == 6
    assert line["groups"] == {"trained": 1, "degenerate": 1, "stale": 1, "failed": 2}
    assert line["completion_length"] == pytest.approx((3 + 3 + 5 + 5 + 3 + 3) / 6)
    assert line["truncated_fraction"] == pytest.approx(2 / 6)


def test_each_step_begins_its_count_anew_and_appends(desk: Desk) -> None:
    desk.tally.consumed(answers(1.0, 0.0), "trained")
    desk.tally.waited(9.0)
    desk.step(1)
    desk.clock.now += 3.0
    desk.tally.consumed(answers(1.0, 1.0, 0.0, 1.0), "trained")
    second = desk.step(2)
    assert (second["reward"], second["samples"], second["wait_seconds"], second["seconds"]) == (0.75, 4, 0.0, 3.0)
    assert [line["step"] for line in desk.lines()] == [1, 2]


def test_a_restarted_learner_appends_to_the_lines_of_the_first(desk: Desk) -> None:
    desk.step(1)
    StepTally(desk.path, 5, LearnerMetrics()).step(
        STATS, step=2, version=2, buffer=0, publish_seconds=0.0, curriculum=CURRICULUM
    )
    assert [line["step"] for line in desk.lines()] == [1, 2]


def test_a_step_of_tombstones_alone_has_a_line_too(desk: Desk) -> None:
    desk.tally.failed()
    line = desk.step()
    assert (line["reward"], line["samples"], line["completion_length"]) == (0.0, 0, 0.0)


def test_an_evaluation_is_a_line_of_its_own(desk: Desk) -> None:
    record = {"label": "end", "policy_version": 3, "pass_at_1": 0.75, "pass_at": {}, "majority_at": {}, "by": []}
    desk.tally.evaluation(record)
    assert desk.lines() == [{"time": 100.0, "eval": record}]
    assert desk.metric("headrace_learner_eval_pass_at_1") == 0.75
    desk.tally.evaluation(record | {"policy_version": 4, "pass_at_1": None})
    assert desk.metric("headrace_learner_eval_pass_at_1") == 0.75, "nothing was measured"


def test_the_last_line_says_why_the_run_is_over(desk: Desk) -> None:
    desk.step()
    desk.tally.ended("solved", {"trained": 8, "degenerate": 3})
    groups = {"trained": 8, "degenerate": 3}
    assert desk.lines()[-1] == {"time": 100.0, "outcome": "solved", "groups": groups}


def test_the_same_figures_are_metrics(desk: Desk) -> None:
    desk.tally.consumed(answers(1.0, 0.0), "trained")
    desk.tally.consumed(answers(1.0, 1.0), "degenerate")
    desk.tally.failed()
    desk.step(3)
    assert desk.metric("headrace_learner_reward") == 0.75
    assert desk.metric("headrace_learner_step") == 3
    assert desk.metric("headrace_learner_policy_version") == 3
    assert desk.metric("headrace_learner_tokens_total") == 9
    assert desk.metric("headrace_learner_staleness_versions_count") == 9
    assert desk.metric("headrace_learner_staleness_versions_sum") == 15
    for verdict in ("trained", "degenerate", "failed"):
        assert desk.metric("headrace_learner_groups_total", verdict=verdict) == 1


def test_what_the_learner_did_around_a_step_is_told_phase_by_phase_and_each_step_begins_anew(desk: Desk) -> None:
    for phase in ("wait", "claim", "wait"):
        with desk.metrics.phase(phase):
            pass
    first = desk.step(1, dataclasses.replace(STATS, phase_seconds={"pack": 0.5}))
    with desk.metrics.phase("checkpoint"):
        pass
    second = desk.step(2)
    assert set(first["loop_seconds"]) == {"wait", "claim"}
    assert set(second["loop_seconds"]) == {"checkpoint"}
    assert first["phase_seconds"] == {"pack": 0.5}
    told = first["loop_seconds"]["wait"]
    assert desk.metric("headrace_learner_phase_seconds_total", phase="wait") == pytest.approx(told, abs=1e-6)
    assert desk.metric("headrace_learner_phase_seconds_total", phase="pack") == 0.5, "counted once"


def test_a_disk_without_room_ends_nothing_and_loses_no_line(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.path.symlink_to("/dev/full")
    for step in (1, 2):
        desk.tally.step(STATS, step=step, version=step, buffer=2, publish_seconds=0.125, curriculum=CURRICULUM)
    desk.path.unlink()
    assert [line["step"] for line in (desk.step(3), *desk.lines())] == [3, 1, 2, 3]
