"""`make bench-autoscaling`: generators scaled by one signal or another, in virtual time, with the real dispatch code.

Every run begins alike and meets the same events; only the signal differs. Learner and generators are nothing but time
passing, and everything that decides about tickets, credit, batches and staleness is production code over a real Redis
(`virtual_learner.py`, `virtual_fleet.py`). Invariant: no run is left out of the tables, and one with a token beyond the
bound, a lost group or books that do not balance ends in an error. Refuses to know how figures are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from benchmarks import autoscaling_report as report
from benchmarks.autoscaler import CLAIMED, LAG, PRESENT, SIGNALS, WAIT, WANTED, Autoscaler, Signal
from benchmarks.virtual_load import Load, Shape
from benchmarks.virtual_run import MEMORY, Run, Sight, between
from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.settings import BrokerSettings

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "runs" / "autoscaling.json"
HOUR = 3600.0
DEFAULT = Shape()
BASE, FAST, LONG, STILL = Load(240.0, 240.0), Load(120.0, 240.0), Load(240.0, 384.0), Load(1200.0, 240.0)
FIXED = (4, 5, 6, 7, 9)


@dataclass(frozen=True)
class Scenario:
    """What happens, in hours, and when generators ought to have settled."""

    name: str
    hours: float
    settled: Sequence[tuple[float, float]]
    signals: Sequence[Signal]
    loads: Sequence[tuple[float, Load]] = ()
    losses: Sequence[float] = ()  # of a third of the generators that are up
    replicas: int = 6
    shape: Shape = DEFAULT
    most: int = 30
    stabilisation: float = 900.0

    def scaler(self, signal: Signal) -> Autoscaler:
        """A new one."""
        return Autoscaler(signal, self.shape.slots, most=self.most, stabilisation=self.stabilisation)


LOADS = Scenario(
    "the learner's demand doubles and halves again",
    6.0,
    ((1.25, 2.0), (3.5, 4.25), (5.25, 6.0)),
    SIGNALS,
    ((2.0, FAST), (4.25, BASE)),
    replicas=1,
)
STANDSTILL = ((1.25, STILL), (1.25 + 0.08, BASE))  # one step begins meanwhile
SCENARIOS = (
    LOADS,
    replace(LOADS, name=f"{LOADS.name}; shrinking after 5 minutes instead of 15", stabilisation=300.0),
    Scenario("groups take 1.6 times as long", 3.0, ((2.0, 3.0),), (WANTED, CLAIMED), ((1.0, LONG),)),
    Scenario(
        "a third lost at once, then five times more",
        4.0,
        ((1.0, 4.0),),
        (WANTED, CLAIMED),
        losses=(1.0, 1.75, 2.0, 2.25, 2.5, 2.75),
    ),
    Scenario("a step takes 20 minutes instead of 4", 2.5, ((1.0, 2.5),), (WANTED, CLAIMED), STANDSTILL),
    Scenario(
        "a step takes 20 minutes instead of 4; shrinking after 5 minutes instead of 15",
        2.5,
        ((1.0, 2.5),),
        (WANTED, CLAIMED),
        STANDSTILL,
        stabilisation=300.0,
    ),
    Scenario("depth 3: as little as sizing allows", 2.5, ((1.0, 2.5),), SIGNALS, shape=Shape(pipeline_depth=3)),
    Scenario(
        "depth 1: credit is the limit", 2.0, ((1.0, 2.0),), (WANTED, CLAIMED, LAG, WAIT), shape=Shape(pipeline_depth=1)
    ),
    Scenario(
        "from one to many (1 slot each)",
        3.5,
        ((2.75, 3.5),),
        (WANTED, CLAIMED, PRESENT),
        replicas=1,
        shape=Shape(slots=1),
        most=120,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one run. `sights`: its curves."""

    scenario: str
    signal: str
    needed: tuple[int, ...]  # in each settled while
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    turns: int  # changes of direction in all of them
    reached: float | None  # seconds until there were as many as were needed at first
    idle: float  # of the learner's time, from start to end
    idle_settled: float
    staleness: tuple[float, int, int]  # mean, maximum, bound; of groups trained on
    generator_hours: float
    groups: dict[str, int]  # by verdict
    sights: tuple[Sight, ...]


def turns(numbers: Sequence[int]) -> int:
    """How often a series changes its direction."""
    moves = [b - a for a, b in pairwise(numbers) if a != b]
    return sum(a * b < 0 for a, b in pairwise(moves))


def outcome(run: Run, scenario: Scenario, signal: str) -> Outcome:
    """Sum it up. Raises `AssertionError` for what may never be."""
    shape, sights, balance = run.shape, run.sights, run.balance()
    ages = [age for sight in sights for age in sight.staleness]
    assert max(ages) <= shape.max_staleness, "a token beyond the bound was trained on"
    assert run.learner.verdicts["stale"] == 0, "a group went stale and was dropped"
    assert sum(balance.verdicts.values()) + len(balance.unsettled) == balance.issued
    whiles = [between(sights, since * HOUR, until * HOUR) for since, until in scenario.settled]
    replicas = [[sight.replicas for sight in sights] for sights in whiles]
    waited = [(sights[-1].waited - sights[0].waited, sights[-1].time - sights[0].time) for sights in whiles]
    return Outcome(
        scenario.name,
        signal,
        tuple(sights[0].needed for sights in whiles),
        tuple(map(min, replicas)),
        tuple(map(max, replicas)),
        sum(map(turns, replicas)),
        next((sight.time for sight in sights if sight.up >= sight.needed), None),
        sights[-1].waited / sights[-1].time,
        sum(w for w, _ in waited) / sum(t for _, t in waited),
        (fmean(ages), max(ages), shape.max_staleness),
        fmean(sight.replicas for sight in sights) * sights[-1].time / HOUR,
        dict(run.learner.verdicts),
        tuple(sights),
    )


def played(scenario: Scenario, signal: Signal | None, replicas: int, seed: int = 1) -> Outcome:
    """One run on a Redis of its own. No signal: `replicas` generators, from start to end."""
    started, name = time.perf_counter(), signal.name if signal else f"{replicas} fixed"
    memory = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=memory) as folder,
        EmbeddedServer(Path(folder), unix_socket=True) as server,
        connect(BrokerSettings(), server.url) as client,
    ):
        scaler = scenario.scaler(signal) if signal else None
        run = Run(client, Keys("scaling"), scenario.shape, BASE, scaler, seed)
        for hour, load in scenario.loads:
            run.at(hour * HOUR, partial(Run.meet, load=load))
        for hour in scenario.losses:
            run.at(hour * HOUR, lambda run: run.fleet.lose(1 / 3))
        run.play(scenario.hours * HOUR, replicas)
        found = outcome(run, scenario, name)
    print(f"{scenario.name}: {name} ({time.perf_counter() - started:.0f} s)", flush=True)
    return found


UNCHANGED = Scenario("fixed", 2.5, ((1.0, 2.5),), ())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make bench-autoscaling", description="generators scaled by several signals")
    parser.add_argument("--again", action="store_true", help="draw anew what was found last")
    if not parser.parse_args().again:
        jobs: list[tuple[Scenario, Signal | None, int]]
        jobs = [(scenario, signal, scenario.replicas) for scenario in SCENARIOS for signal in scenario.signals]
        jobs += [(UNCHANGED, None, replicas) for replicas in FIXED]
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            futures = [pool.submit(played, *job) for job in jobs]
            outcomes = [asdict(future.result()) for future in futures]
        FOUND.parent.mkdir(exist_ok=True)
        FOUND.write_text(json.dumps(outcomes))
    outcomes = json.loads(FOUND.read_text())
    (ROOT / "benchmarks" / "autoscaling.md").write_text(report.page(outcomes), encoding="utf-8")
    (ROOT / "docs" / "autoscaling.png").write_bytes(report.picture(outcomes, LOADS.name, LOADS.settled))
    print("benchmarks/autoscaling.md, docs/autoscaling.png")


if __name__ == "__main__":
    main()
