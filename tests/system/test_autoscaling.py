"""Generators follow what the learner needs, in virtual time and with production's dispatch; the naive signals do not.

What is needed is computed from the load: groups a second times their seconds, over 0.85 of the slots of a generator. A
smaller fleet than that of `make bench-autoscaling`, at the same times.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from benchmarks.autoscaler import CLAIMED, LAG, WAIT, WANTED, Autoscaler, Scrape, Signal, wanted
from benchmarks.autoscaling import BASE, DEFAULT, FAST, HOUR, turns
from benchmarks.virtual_load import Load, Shape
from benchmarks.virtual_run import Run, between
from broker.keys import Keys
from tests.system.pipeline import ROOT

SMALL = replace(DEFAULT, slots=4, groups_per_step=16)
RULES = ROOT / "monitoring" / "prometheus" / "rules.yml"
PAGE = (ROOT / "docs" / "autoscaling.md").read_text(encoding="utf-8")
RECORDED = "headrace:generators_wanted:mean10m"
WRITTEN_OUT = " ".join(PAGE.split("```promql")[1].split("```")[0].split())
Happens = Callable[[Run], object]


def played(
    redis: redis.Redis,
    keys: Keys,
    signal: Signal,
    hours: float,
    *happens: tuple[float, Happens],
    replicas: int = 1,
    shape: Shape = SMALL,
) -> Run:
    run = Run(redis, keys, shape, BASE, Autoscaler(signal, shape.slots), seed=1)
    for hour, happen in happens:
        run.at(hour * HOUR, happen)
    run.play(hours * HOUR, replicas)
    return run


def wishes(run: Run, since: float, until: float) -> list[int]:
    """How many generators the autoscaler wanted, scrape by scrape."""
    return [sight.replicas for sight in between(run.sights, since * HOUR, until * HOUR)]


def idle(run: Run, since: float, until: float) -> float:
    """The learner's time without a batch."""
    sights = between(run.sights, since * HOUR, until * HOUR)
    return (sights[-1].waited - sights[0].waited) / (sights[-1].time - sights[0].time)


def all_is_well(run: Run) -> None:
    """I1 and I2 at the end; that the books balanced at every scrape the run has seen to."""
    ages = [age for sight in run.sights for age in sight.staleness]
    assert max(ages) <= run.shape.max_staleness
    assert run.learner.verdicts["stale"] == 0
    balance = run.balance()
    assert balance.issued == sum(balance.verdicts.values()) + len(balance.unsettled)
    under_way = len(run.learner.training) + len(run.learner.learnt)
    assert balance.verdicts["trained"] + under_way == run.learner.verdicts["trained"], "what was trained on is final"
    assert len(balance.unsettled) <= run.shape.capacity


# -- the signal that is used ------------------------------------------------------------------------------------------


def test_generators_settle_within_two_of_what_is_needed_whatever_happens(redis: redis.Redis, keys: Keys) -> None:
    run = played(
        redis,
        keys,
        WANTED,
        4.25,
        (1.25, lambda run: run.meet(FAST)),
        (2.75, lambda run: run.fleet.lose(1 / 3)),
        (3.25, lambda run: run.meet(BASE)),
    )
    for since, until in ((1.0, 1.25), (2.7, 3.25), (4.1, 4.25)):
        needed = between(run.sights, since * HOUR, until * HOUR)[0].needed
        assert needed == (12 if until == 3.25 else 6)
        found = wishes(run, since, until)
        assert needed - 2 <= min(found) <= max(found) <= needed + 2, (since, found)
        assert turns(found) <= 2, "no oscillation"
        assert idle(run, since, until) < 0.05
    assert min(sight.up for sight in run.sights if 2.75 * HOUR < sight.time < 2.9 * HOUR) < 9, "the loss was one"
    all_is_well(run)


def test_one_generator_becomes_many_sooner_than_by_claimed_tickets_alone(redis: redis.Redis) -> None:
    shape, reached = replace(SMALL, slots=1), {}
    for signal in (WANTED, CLAIMED):
        redis.flushall()
        run = played(redis, Keys("many"), signal, 1.0, shape=shape)
        reached[signal.name] = run.sights[-1].up
        assert run.sights[-1].needed == 23
    assert reached[WANTED.name] >= 23 > 10 > reached[CLAIMED.name]


def test_where_credit_is_the_limit_more_generators_are_not_asked_for(redis: redis.Redis) -> None:
    most = {}
    for signal in (WANTED, WAIT):
        redis.flushall()
        shallow = replace(SMALL, pipeline_depth=1)
        run = played(redis, Keys("shallow"), signal, 1.5, replicas=6, shape=shallow)
        assert idle(run, 0.75, 1.5) > 0.2, "nobody can help it"
        most[signal.name] = max(wishes(run, 0.75, 1.5))
        all_is_well(run)
    assert most[WANTED.name] <= 8
    assert most[WAIT.name] == 30


@pytest.mark.parametrize("signal", [LAG, WAIT], ids=lambda signal: signal.name)
def test_a_naive_signal_swings(redis: redis.Redis, keys: Keys, signal: Signal) -> None:
    tight = replace(SMALL, max_staleness=8)
    run = played(redis, keys, signal, 1.5, (0.0, lambda run: run.meet(FAST)), replicas=12, shape=tight)
    found = wishes(run, 0.5, 1.5)
    assert min(found) < 12 - 4
    assert max(found) - min(found) > 5
    assert max(age for sight in run.sights for age in sight.staleness) == 8, "the bound is reached, and"
    all_is_well(run)  # never passed, however many generators there are


# -- what the cluster computes ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: apt install prometheus)")
def test_prometheus_reads_from_the_series_of_a_run_what_it_was_scaled_by(
    redis: redis.Redis, keys: Keys, tmp_path: Path
) -> None:
    now_and_then = [
        Scrape(30.0 * n, 8, 5 * (n % 2), 12.0 * n) for n in range(121)
    ]  # tickets lie about half of the time
    lines = [f"rule_files: ['{RULES}']", "evaluation_interval: 30s", "tests:"]
    for scrapes in (played(redis, keys, WANTED, 1.0).scrapes, now_and_then):
        lines += agreeing(scrapes)
    path = tmp_path / "series.yml"
    path.write_text("\n".join(lines))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def agreeing(scrapes: Sequence[Scrape]) -> list[str]:
    """A test of promtool's: what both queries come to of these scrapes is what `wanted` does."""
    series: dict[str, list[float]] = {
        'headrace_ledger_located_tickets{run="demo", kind="train", place="claimed"}': [s.claimed for s in scrapes],
        'headrace_ledger_located_tickets{run="demo", kind="train", place="waiting"}': [s.waiting for s in scrapes],
        'headrace_learner_phase_seconds_total{run="demo", phase="wait"}': [round(s.waited, 3) for s in scrapes],
        'headrace_generator_slots{run="demo"}': [SMALL.slots for _ in scrapes],
    }
    lines = ["  - interval: 30s", "    input_series:"]
    for name, values in series.items():
        lines += [f"      - series: '{name}'", f"        values: '{' '.join(str(value) for value in values)}'"]
    lines.append("    promql_expr_test:")
    for minute in (20, 30, 45, 60):
        ours = wanted(scrapes[: 2 * minute + 1]) / (0.85 * SMALL.slots)
        for query in (RECORDED, WRITTEN_OUT):
            far = f"abs(({query}) / {ours} - 1) > bool 0.08"
            sample = """{labels: '{run="demo"}', value: 0}"""
            lines += [f"      - {{expr: '{far}', eval_time: {minute}m, exp_samples: [{sample}]}}"]
    return lines


# -- the control law, and the load ------------------------------------------------------------------------------------


def scraped(*claimed: int) -> Sequence[Scrape]:
    return [Scrape(30.0 * n, each, 0, 0.0) for n, each in enumerate(claimed)]


def test_a_tenth_more_or_less_changes_nothing() -> None:
    scaler = Autoscaler(CLAIMED, slots=10)
    assert [scaler.decide(scraped(busy), 0.0, 4) for busy in (31, 37)] == [4, 4]
    assert scaler.decide(scraped(38), 0.0, 4) == 5


def test_it_shrinks_to_the_most_of_the_last_minutes() -> None:
    scaler = Autoscaler(CLAIMED, slots=10, stabilisation=300.0)
    assert scaler.decide(scraped(51), 0.0, 2) == 6
    assert scaler.decide(scraped(34), 30.0, 6) == 6, "six were recommended half a minute ago"
    assert scaler.decide(scraped(17), 299.0, 6) == 6
    assert scaler.decide(scraped(17), 301.0, 6) == 4
    assert scaler.decide(scraped(17), 600.0, 4) == 2


def test_it_keeps_what_it_finds_before_it_shrinks_for_the_first_time() -> None:
    assert Autoscaler(CLAIMED, slots=10).decide(scraped(0), 0.0, 6) == 6


def test_it_grows_by_four_or_to_twice_as_many_and_to_no_more_than_it_may() -> None:
    assert Autoscaler(CLAIMED, slots=1).decide(scraped(60), 0.0, 1) == 5
    assert Autoscaler(CLAIMED, slots=1).decide(scraped(60), 0.0, 10) == 20
    assert Autoscaler(CLAIMED, slots=1, most=12).decide(scraped(60), 0.0, 10) == 12


def test_a_wait_counts_for_twice_the_demand_at_most_and_only_while_tickets_lie_about() -> None:
    hungry = [Scrape(30.0 * n, 8, 5, 30.0 * n) for n in range(40)]
    half = [Scrape(30.0 * n, 8, 5, 10.0 * n) for n in range(40)]
    straggling = [replace(scrape, waiting=0) for scrape in hungry]
    assert wanted(hungry) == 16
    assert wanted(half) == pytest.approx(12)
    assert wanted(straggling) == 8


def test_the_mean_time_of_a_group_is_that_of_what_is_drawn() -> None:
    load, chance = Load(240.0, 100.0), np.random.default_rng(0)
    drawn = [load.draw(chance) for _ in range(200_000)]
    assert max(drawn) == 600.0
    assert load.held_seconds == pytest.approx(np.mean(drawn), rel=0.01)
    assert Shape(slots=8, groups_per_step=32, degenerate=0.2).offered(BASE) == pytest.approx(38.7, abs=0.1)
