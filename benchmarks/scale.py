"""`make bench-scale`: the flow of tickets at scale: idle time beside its floor, cost a group, connections.

Idle: production's Dispatch, StalenessBuffer, ledger, streams and PolicyStore over a real Redis, in virtual time, beside
bounds that are computed without them (`scale_floor.py`). Cost: production's Intake on top of them, in CPU time
(`scale_cost.py`). Connections: real clients in real time (`scale_connections.py`). Invariant: every run is in a table
and every round in a finding. Refuses to know how figures are shown.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import scale_report as report
from benchmarks.findings import Leg, machine, run
from benchmarks.scale_connections import most, reached
from benchmarks.scale_cost import BATCH, Station, microseconds
from benchmarks.scale_findings import SAID, findings
from benchmarks.scale_meter import Meter
from benchmarks.scale_picture import picture
from benchmarks.scale_run import Job, played, server
from benchmarks.scale_times import lognormal
from benchmarks.virtual_run import MEMORY
from broker.embedded import EmbeddedServer

NAME = "scale"
ROOT = Path(__file__).parents[1]
FOUND = ROOT / "runs" / "scale.json"
DEPTHS, BOUNDS = (0, 1, 2, 4), (0, 1, 2, 4, 6, 8, 12, 16)
STRICT = (0, 1, 2, 4, 8, 16)
SEEDS = range(1, 6)
FLEETS = {8: 300, 32: 150, 128: 60, 512: 30, 1024: 24}  # generators of one slot, and steps
ROUNDS, COST_STEPS = 11, 10  # in each round one checkpoint
WAITS = {"trains": 1.0, "waits": 0.0}  # seconds of a step: groups come while it trains; each is waited for
AT_ONCE, HOLDING = (8, 64, 256, 1024), {256: 2.0, 1024: 8.0, 2048: 16.0}  # generators: seconds that each ticket is held
MOST_GENERATORS = 6000

Rows = list[dict[str, Any]]


def grid(times: str, steps: int, depths: Sequence[int] = DEPTHS, bounds: Sequence[int] = BOUNDS) -> list[Job]:
    """Every depth with every bound that allows it, and `strict`, whose depth is its bound."""
    ready = [Job(times, depth, bound, steps=steps) for depth, bound in product(depths, bounds) if depth <= bound]
    return ready + [Job(times, bound, bound, "strict", steps=steps) for bound in STRICT if bound in bounds]


def idle(quick: bool) -> Rows:
    """The grid, of both distributions."""
    if quick:
        return all_of(grid("log-normal", 6, (0, 2), (0, 2, 4)))
    return all_of([*grid("log-normal", 150), *grid("GSM8K", 60, bounds=(0, 1, 2, 4, 8, 16))])


def pairs(quick: bool) -> Rows:
    """`ready` at depth 2 and `strict`, both with bound 16, seed by seed."""
    seeds, steps = (range(1, 2), 6) if quick else (SEEDS, 200)
    jobs = [Job("log-normal", 2, 16, steps=steps, seed=seed) for seed in seeds]
    return all_of([*jobs, *(Job("log-normal", 16, 16, "strict", steps=steps, seed=seed) for seed in seeds)])


def fleets(quick: bool) -> Rows:
    """Ever more generators, and groups in a step."""
    sizes = {8: 6} if quick else FLEETS
    return all_of([Job("log-normal", 2, 16, generators=n, slots=1, steps=steps) for n, steps in sizes.items()])


def all_of(jobs: Sequence[Job]) -> Rows:
    """The longest first."""
    order = sorted(range(len(jobs)), key=lambda n: -jobs[n].steps * jobs[n].sides.groups_per_step)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = {n: pool.submit(played, jobs[n]) for n in order}
        return [asdict(futures[n].result()) for n in range(len(jobs))]


def cost(quick: bool) -> Rows:
    """CPU microseconds a group by generators, round by round, each round with all of them."""
    sizes, rounds, steps = ((8, 64), 1, 2) if quick else (tuple(FLEETS), ROUNDS, COST_STEPS)
    rows = Rows()
    with server() as (started, client), tempfile.TemporaryDirectory(dir=_memory()) as folder:
        meter, times, stations = Meter(started.pid), lognormal(), dict[tuple[str, int], Station]()
        for (wait, seconds), generators in product(WAITS.items(), sizes):
            station = stations[wait, generators] = Station(client, Path(folder), meter, times, generators, seconds)
            for _ in range(3 if quick else max(10, 2 * generators // BATCH + 6)):  # until each has had a ticket or two
                station.step()
        gc.collect()
        gc.freeze()  # a learner has no thousand generators for its garbage collector to go through
        for number in range(rounds):
            for (wait, generators), station in stations.items():
                ours, servers = microseconds(station, steps)
                of = {
                    "wait": wait,
                    "generators": generators,
                    "in_play": station.shape.capacity,
                    "round": number,
                    "steps": steps,
                }
                rows.append({**of, "ours": ours, "servers": servers})
        for station in stations.values():
            station.close()
    return rows


def connections(quick: bool) -> Rows:
    """Generators in real time, each number on a server of its own."""
    levels = [(4, 0.0), (4, 0.2)] if quick else [*((n, 0.0) for n in AT_ONCE), *HOLDING.items()]
    rows, seconds = Rows(), 1.0 if quick else 8.0
    for generators, held in levels:
        with tempfile.TemporaryDirectory(dir=_memory()) as folder, EmbeddedServer(Path(folder)) as started:
            found = reached(started.url, started.pid, generators, held, seconds)
            p50, p99 = found.quantile(0.5), found.quantile(0.99)
            rows.append({**asdict(found), "claims": len(found.claims), "rate": found.rate, "p50": p50, "p99": p99})
            print(f"{generators} generators: {found.rate:.0f} groups/s", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=_memory()) as folder, EmbeddedServer(Path(folder)) as started:
        number, said = most(started.url, 10 if quick else MOST_GENERATORS)
    return [*rows, {"generators": number, "said": said}]


def _memory() -> Path | None:
    return MEMORY if MEMORY.is_dir() else None


PARTS: dict[str, Callable[[bool], Rows]] = {
    "idle": idle,
    "pairs": pairs,
    "fleets": fleets,
    "cost": cost,
    "connections": connections,
}


def measure(options: argparse.Namespace) -> Leg:
    """All parts, or one of them beside what the others found last."""
    asked = [options.only] if options.only else list(PARTS)
    document = json.loads(FOUND.read_text()) if options.only and FOUND.exists() and not options.quick else {}
    for part in asked:
        document |= {part: PARTS[part](options.quick), "machine": machine()}
    if not options.quick:
        FOUND.parent.mkdir(exist_ok=True)
        FOUND.write_text(json.dumps(document))
        if "idle" in document:  # else it is a part alone, and the page that is there tells of more
            (ROOT / "benchmarks" / "scale.md").write_text(report.page(document), encoding="utf-8")
            (ROOT / "docs" / "scale.png").write_bytes(picture(document))
    return Leg(NAME, document["machine"], findings(document), SAID)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make bench-scale", description="the flow of tickets with many generators")
    parser.add_argument("--only", choices=PARTS, help="measure this part, and take the others as they were found last")
    run(NAME, measure, parser)


if __name__ == "__main__":
    main()
