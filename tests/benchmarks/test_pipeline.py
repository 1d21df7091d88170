"""The pipeline leg, as small as it can be: whole runs, what is seen of them, and how they are compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.findings import Leg
from benchmarks.pipeline import ALONE, ASYNC, SYNC, rows
from benchmarks.pipeline_run import Ran, _union, kept


def ran(mode: str, seed: int, speed: float, wait: float = 6.0, train: float = 4.0) -> Ran:
    idle = wait / (wait + train)
    return Ran(mode, seed, "", "", speed, idle, 1 - idle, wait, train, 32, 0.2, 0.8, 1.0, 60.0)


def test_modes_are_compared_seed_by_seed_and_with_the_bound() -> None:
    found = [ran(SYNC, 1, 3.2), ran(SYNC, 2, 1.6), ran(ALONE, 1, 3.2), ran(ASYNC[1], 1, 4.0), ran(ASYNC[1], 2, 4.0)]
    told = {row.what: row for row in rows(found, on_gpu=False)}
    assert told["async, bound 4: samples/s, of sync"].values == pytest.approx((1.25, 2.5))
    bounded = told["async, bound 4: of the overlap bound"]
    assert bounded.values == pytest.approx((4.0 * 6.0 / 32,))
    assert "1.67×" in bounded.note
    assert told["sync: learner idle"].values == pytest.approx((60.0, 60.0))
    assert told["sync: reward gained a minute"].median == pytest.approx(0.6)


def test_what_overlaps_counts_once() -> None:
    assert _union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.7)]) == 4.0
    assert _union([]) == 0.0


def test_whole_runs_are_made_seen_and_kept(tmp_path: Path) -> None:
    kept_at, picture, found = tmp_path / "kept.jsonl", tmp_path / "gantt.png", tmp_path / "leg.json"
    modes = (SYNC, ASYNC[1])
    command = [
        sys.executable,
        "-m",
        "benchmarks.pipeline",
        "--quick",
        "--steps",
        "4",
        "--seeds",
        "1",
        "--modes",
        *modes,
    ]
    command += ["--kept", str(kept_at), "--picture", str(picture), "--json", str(found)]
    command += ["--flags", f"--run.directory {tmp_path / 'runs'}"]
    for _ in range(2):  # the second time there is nothing left to run
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert [one.mode for one in kept(kept_at)] == list(modes)
    synchronous, other = kept(kept_at)
    assert (synchronous.staleness, synchronous.samples) == (0.0, 8)
    assert 0 <= other.staleness <= 4
    for one in (synchronous, other):
        assert 0 <= one.learner_idle <= 1
        assert 0 <= one.generator_idle <= 1
    assert Leg.read(found).findings
    assert picture.stat().st_size > 10_000
