"""Reward against staleness: the toy is what it says, the lag is the one asked for, and the figures leave nothing out.

What the benchmark finds takes hundreds of runs and is not tested; here a few short ones go all the way to the picture.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.lagged import Run, train
from benchmarks.staleness import PRESETS, QUICK, RATE_SEEDS, Sweep, asked, main, parsed
from benchmarks.staleness_report import STYLES
from benchmarks.toy import BASE, END, LONGEST, Toy, addition, imitator, sampled

SHORT = Run("headrace", 2, seed=1, learning_rate=2e-3, steps=6, imitation=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the quick benchmark has written."""
    folder = tmp_path_factory.mktemp("staleness")
    main(["--quick", "--processes", "1", "--tables", str(folder / "s.md"), "--picture", str(folder / "s.png")])
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "s.json").read_text())["runs"]
    return found


def test_every_run_that_was_asked_for_is_in_the_figures(folder: Path, runs: list[dict[str, Any]]) -> None:
    asked = {(p, k, s) for p in QUICK.presets for k in QUICK.staleness for s in QUICK.seeds}
    assert len(runs) == len(asked)
    assert {(r["preset"], r["staleness"], r["seed"]) for r in runs} == asked
    for figure in ("start", "final", "area", "ess", "sequence_ess", "clipped", "truncated", "masked", "curve"):
        assert np.isfinite([r[figure] for r in runs]).all()
    tables = (folder / "s.md").read_text()
    assert all(tables.count(f"\n| `{preset}` | ") >= 4 for preset in QUICK.presets)
    assert "nan" not in tables
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_is_exactly_as_stale_as_asked_for(runs: list[dict[str, Any]]) -> None:
    assert all(r["staleness_seen"] == r["staleness"] for r in runs)


def test_fresh_samples_all_count_and_stale_ones_do_not(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        if run["staleness"] == 0:
            assert run["ess"] == pytest.approx(1.0, abs=1e-9)
            assert run["clipped"] == run["truncated"] == run["masked"] == 0
        else:
            assert run["ess"] < 1 - 1e-4


def test_a_correction_changes_nothing_until_something_is_stale(runs: list[dict[str, Any]]) -> None:
    final = {(r["preset"], r["staleness"], r["seed"]): r["final"] for r in runs}
    for seed in QUICK.seeds:
        assert final["headrace", 0, seed] == pytest.approx(final["pg", 0, seed], abs=1e-6)
        assert abs(final["headrace", 2, seed] - final["pg", 2, seed]) > 1e-5


def test_presets_that_share_trials_are_the_same_without_staleness() -> None:
    fresh = replace(SHORT, staleness=0, steps=5, imitation=60)  # several groups a batch with something to tell
    final = {preset: train(replace(fresh, preset=preset)).final for preset in ("pipelinerl", *PRESETS)}
    for preset, found in final.items():
        assert found == pytest.approx(final[Sweep().tried_as(preset)], abs=1e-6)
    assert abs(final["pg"] - final["areal"]) > 1e-5  # or this would be no news


def test_no_rate_is_chosen_by_a_run_that_is_shown() -> None:
    assert not set(RATE_SEEDS) & set(Sweep().seeds)
    assert {run.staleness for run in Sweep().trials()} == {0}
    assert set(PRESETS) <= set(STYLES)


def test_what_is_asked_for_can_be_written_down_with_what_is_found() -> None:
    sweep = asked(parsed(["--seeds", "3", "--presets", "pg", "--staleness", "0", "4"]))
    assert len(sweep.runs({"pg": 1e-3})) == 3 * 2
    assert json.loads(json.dumps(asdict(sweep)))["seeds"] == [1, 2, 3]
    assert asked(parsed([])) == replace(
        Sweep(), presets=list(PRESETS), staleness=[0, 1, 2, 4, 8, 16], rates=sweep.rates
    )


def test_a_run_is_a_function_of_what_it_was_asked() -> None:
    first = train(SHORT)
    assert first == train(SHORT)
    assert first.curve != train(replace(SHORT, seed=2)).curve


def test_the_behaviour_is_that_of_the_policy_that_sampled() -> None:
    problems, toy = addition(), imitator(addition(), seed=3, steps=5)
    for group in sampled(toy, problems, 7, groups=4, size=3, chance=torch.Generator().manual_seed(1)):
        for rollout in group.rollouts:
            assert rollout.oldest_version == 7
            padded = torch.full((1, LONGEST), END)
            padded[0, : len(rollout.tokens)] = torch.from_numpy(rollout.tokens).long()
            again = toy.logprobs(torch.from_numpy(group.prompt).long()[None], padded)[0, : len(rollout.tokens)]
            np.testing.assert_allclose(rollout.behaviour_logprobs, again.detach().numpy(), atol=1e-5)


def test_a_reward_is_for_the_sum_and_its_end() -> None:
    groups = sampled(Toy(), addition(), 0, groups=60, size=20, chance=torch.Generator().manual_seed(2))
    rewards = []
    for group in groups:
        a, b, c, d = group.prompt.tolist()
        total = BASE * a + b + BASE * c + d
        for rollout in group.rollouts:
            *digits, last = rollout.tokens.tolist()
            told = sum(digit * BASE**place for place, digit in enumerate(digits))
            proper = bool(digits) and last == END and END not in digits and (digits[-1] > 0 or len(digits) == 1)
            assert rollout.reward == float(proper and told == total)
            assert rollout.truncated == (last != END)
            rewards.append(rollout.reward)
    assert 0 < np.mean(rewards) < 1


def test_the_expected_reward_is_what_samples_come_to() -> None:
    problems, toy = addition(), imitator(addition(), seed=4, steps=20)
    groups = sampled(toy, problems, 0, groups=2000, size=2, chance=torch.Generator().manual_seed(5))
    rewards = [r.reward for group in groups for r in group.rollouts]
    expected = toy.expected_reward(problems)
    assert np.mean(rewards) == pytest.approx(expected, abs=5 * math.sqrt(expected / len(rewards)))
