"""The pipeline leg, as small as it can be: whole runs, what is seen of them, and how they are compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.findings import Leg
from benchmarks.pipeline import ALONE, ASYNC, SYNC, rewards, rows
from benchmarks.pipeline_run import Alone, Ran, _union, kept


def ran(mode: str, seed: int, speed: float, last: float = 0.8) -> Ran:
    return Ran(mode, seed, "", "", speed, 0.6, 0.4, 0.01, 0.2, last, 1.0, 60.0)


def test_modes_are_compared_seed_by_seed_and_with_the_bound() -> None:
    found = [ran(SYNC, 1, 3.2), ran(SYNC, 2, 1.6), ran(ASYNC[1], 1, 4.0), ran(ASYNC[1], 2, 4.0)]
    alone = Alone(ALONE, 1, "", "", generation=6.0 / 32, training=4.0 / 32)
    told = {row.what: row for row in rows([*found, alone], on_gpu=False)}
    assert told["async, bound 4: samples/s, of sync"].values == pytest.approx((1.25, 2.5))
    bounded = told["async, bound 4: of the overlap bound"]
    assert bounded.values == pytest.approx((100 * 4.0 * 6.0 / 32,)), "32/6 a second is what the slower side can do"
    assert "1.67×" in bounded.note
    assert told["sync: learner idle"].values == pytest.approx((60.0, 60.0))
    assert told["sync: reward gained a minute"].median == pytest.approx(0.6)


def test_final_rewards_that_lie_apart_are_said_to() -> None:
    sync = [ran(SYNC, 1, 1.0, 0.5), ran(SYNC, 2, 1.0, 0.7)]
    within, apart = ran(ASYNC[0], 1, 1.0, 0.7), ran(ASYNC[1], 1, 1.0, 0.4)
    told = rewards([*sync, within, apart])
    assert "0.50 to 0.70" in told
    assert "async, bound 1 overlap" in told
    assert "async, bound 4 do **not**" in told
    assert rewards([within]) == ""


def test_what_overlaps_counts_once() -> None:
    assert _union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.7)]) == 4.0
    assert _union([]) == 0.0


def test_whole_runs_are_made_seen_and_kept(tmp_path: Path) -> None:
    kept_at, picture, found = tmp_path / "kept.jsonl", tmp_path / "gantt.png", tmp_path / "leg.json"
    modes = (ALONE, SYNC, ASYNC[1])
    command = [sys.executable, "-m", "benchmarks.pipeline", "--quick", "--steps", "5", "--seeds", "1"]
    command += ["--modes", *modes, "--flags", f"--run.directory {tmp_path / 'runs'}"]
    command += ["--kept", str(kept_at), "--picture", str(picture), "--json", str(found)]
    for _ in range(2):  # the second time there is nothing left to run
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert [one.mode for one in kept(kept_at)] == list(modes)
    alone, synchronous, other = kept(kept_at)
    assert isinstance(alone, Alone)
    assert alone.generation > 0
    assert alone.training > 0
    assert 1 <= alone.bound <= 2
    for one, most in ((synchronous, 0), (other, 4)):
        assert isinstance(one, Ran)
        assert 0 <= one.staleness <= most
        assert 0 <= one.learner_idle <= 1
        assert 0 <= one.generator_idle <= 1
        assert 0 <= one.publishing <= 1
    assert Leg.read(found).findings
    assert picture.stat().st_size > 10_000
