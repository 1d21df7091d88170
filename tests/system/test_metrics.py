"""Every metric of the catalogue is set by a run: real processes are asked until all of their figures have been."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from monitoring.catalogue import catalogue
from tests.monitoring.test_metrics import scrape
from tests.ports import free_port
from tests.system.pipeline import ROOT, Pipeline, wait_until

# What a healthy run on a CPU leaves at 0 or unknown, and why; each has a test of its own elsewhere.
LEFT = {
    "headrace_generator_failed_groups_total": "nothing fails",
    "headrace_generator_refresh_failures_total": "nothing fails",
    "headrace_generator_engine_restarts_total": "nothing fails",
    "headrace_generator_penalty_component_total": "the task's components are never negative, its reward is",
    "headrace_learner_skipped_updates_total": "no gradient is infinite",
    "headrace_learner_out_of_range_steps": "nothing collapses",
    "headrace_learner_publication_failures_total": "the disk has room",
    "headrace_learner_checkpoint_failures_total": "the disk has room",
    "headrace_learner_rebuilds_total": "Redis loses nothing",
    "headrace_exporter_waiting": "Redis is never away",
    "headrace_exporter_waiting_since_seconds": "Redis is never away",
    "headrace_ledger_astray_tickets": "the books balance",
    "headrace_dead_letters": "nothing fails",
    "headrace_dead_letters_dropped_total": "nothing fails",
    "headrace_requeued_tickets": "nobody asks for it",
    "headrace_late_groups_total": "no lease lapses",
    "headrace_generator_audit_lost_notes_total": "Redis takes every note",
    "headrace_learner_audit_lost_notes_total": "Redis takes every note",
    "headrace_run_finished": "the run is not over when it is asked",
    "headrace_redis_maxmemory_bytes": "no limit is set",
}
# Bounds so tight that every mask, clip and cap acts, and settings that have every part of a step done.
SECTIONS: dict[str, dict[str, Any]] = {
    "task": {
        "name": "mixture",
        "parts": [
            {"name": "addition", "held_out": 12, "reward": {"correct": 1.0, "length": -0.2, "han": 0.1}},
            {"name": "addition", "held_out": 12, "digits": 2, "reward": {"correct": 1.0, "length": -0.2}},
        ],
    },
    "objective": {
        "clip_low": 1e-4,
        "clip_high": 1e-4,
        "truncation": 1.0001,
        "veto": 0.99,
        "kl": "k3",
        "kl_coefficient": 0.01,
    },
    "learner": {
        "minibatches_per_batch": 2,
        "learning_rate": 1e-3,
        "eval_every": 8,
        "eval_problems": 24,
        "curriculum": "target",
        "peak_flops": 1e11,
    },
    "sampling": {"max_tokens": 2},  # an answer of two digits is cut off
    "run": {"steps": 100_000},
}


def recipe(folder: Path) -> Path:
    document = tomllib.loads((ROOT / "recipes" / "tiny.toml").read_text())
    for name, values in SECTIONS.items():
        document[name] = values if name == "task" else document.get(name, {}) | values
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(document))
    return path


def set_in(port: int) -> set[str]:
    """Names of the samples that say something: finite and not 0, or an evaluation's, which may be that bad."""
    try:
        families = scrape(port)
    except OSError:  # not up yet
        return set()
    samples = [s for family in families.values() for s in family.samples]
    return {s.name for s in samples if math.isfinite(s.value) and (s.value != 0 or "_eval_" in s.name)}


def test_every_metric_of_the_catalogue_is_set_by_a_run(tmp_path: Path, taught: Path) -> None:
    ports = {name: free_port() for name in ("learner", "generator", "exporter")}
    flags = ["--run.model", str(taught), "--monitoring.exporter_seconds", "0.2"]
    flags += [flag for name, port in ports.items() for flag in (f"--monitoring.{name}_port", str(port))]
    wanted = {name for one in catalogue() if one.name not in LEFT for name in one.series}
    seen: set[str] = set()

    def missing() -> set[str]:
        for port in ports.values():
            seen.update(set_in(port))
        return wanted - seen

    with Pipeline(tmp_path / "runs", flags, recipe=str(recipe(tmp_path))) as run:
        run.learner()
        run.generator()
        run.start("monitoring.exporter", "exporter")
        try:
            wait_until(lambda: not missing(), "every metric has been set", 150)
        except AssertionError:
            raise AssertionError(f"never set: {sorted(missing())}\n{run.log('learner')[-2000:]}") from None
    known = {name for one in catalogue() for name in one.series}
    assert {n for n in seen if not n.endswith("_created")} <= known, "nothing is shown that is not described"
    assert not seen & LEFT.keys(), "a figure of the list that a run does set"
