"""`make staleness`: reward against staleness, preset by preset, on a toy: a table, a picture and the raw numbers.

First each preset gets its learning rate: the one of the grid that leaves the best mean final reward at staleness 0, on
seeds of their own. Then it is held fixed over all stalenesses. Invariant: every run that was asked for is in the
figures, and no rate was chosen by a run that is shown. Refuses to know how a run works and how figures are drawn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.lagged import IMITATION, Outcome, Run, train
from benchmarks.staleness_report import markdown, picture

PRESETS = ("pg", "grpo", "cispo", "areal", "m2po", "headrace")
# With fresh samples and one update a step every ratio is 1, and these presets' gradients are those of another: they
# differ in nothing but what they do about staleness, and share the trials that choose a learning rate without it.
ALIKE = {"headrace": "pg", "pipelinerl": "pg", "cispo": "areal", "m2po": "areal"}
STALENESS = (0, 1, 2, 4, 8, 16)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
RATE_SEEDS = (101, 102, 103)


@dataclass(frozen=True)
class Sweep:
    """What is run."""

    presets: Sequence[str] = PRESETS
    staleness: Sequence[int] = STALENESS
    seeds: Sequence[int] = tuple(range(1, 9))
    rate_seeds: Sequence[int] = RATE_SEEDS
    rates: Sequence[float] = RATES
    steps: int = 150
    minibatches: int = 1
    imitation: int = IMITATION

    def trials(self) -> list[Run]:
        """The runs that choose the learning rates."""
        plain = [Run("", 0, seed, 0.0, self.steps, self.minibatches, self.imitation) for seed in self.rate_seeds]
        presets = dict.fromkeys(self.tried_as(preset) for preset in self.presets)
        return [replace(r, preset=p, learning_rate=rate) for r in plain for p in presets for rate in self.rates]

    def tried_as(self, preset: str) -> str:
        """Whose trials choose its learning rate."""
        return ALIKE.get(preset, preset) if self.minibatches == 1 else preset

    def runs(self, rates: dict[str, float]) -> list[Run]:
        """The runs that are shown."""
        plain = [
            Run("", k, s, 0.0, self.steps, self.minibatches, self.imitation) for s in self.seeds for k in self.staleness
        ]
        return [replace(r, preset=p, learning_rate=rates[p]) for r in plain for p in self.presets]


# Small enough for a test: it shows that everything runs, and nothing about staleness.
QUICK = Sweep(
    presets=("pg", "grpo", "headrace"),
    staleness=(0, 2),
    seeds=(1, 2),
    rate_seeds=(101,),
    rates=(8e-3,),
    steps=8,
    imitation=10,
)


def measured(sweep: Sweep, processes: int) -> dict[str, Any]:
    """Everything that was found, as it is written to `staleness.json`."""
    started = time.perf_counter()
    trials = _all(sweep.trials(), processes)
    rates = {preset: _best(sweep.tried_as(preset), trials) for preset in sweep.presets}
    shown = _all(sweep.runs(rates), processes)
    return {
        "machine": machine(),
        "seconds": round(time.perf_counter() - started),
        "sweep": asdict(sweep),
        "rates": rates,
        "tried_as": {preset: sweep.tried_as(preset) for preset in sweep.presets},
        "trials": [asdict(run) | asdict(outcome) for run, outcome in trials],
        "runs": [asdict(run) | asdict(outcome) for run, outcome in shown],
    }


def machine() -> str:
    """What the figures depend on besides the code."""
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    return f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {versions}"


def _best(preset: str, trials: Sequence[tuple[Run, Outcome]]) -> float:
    """The learning rate that left the best mean final reward; the lower one of equals."""
    rates = sorted({run.learning_rate for run, _ in trials})

    def final(rate: float) -> float:
        return fmean(o.final for run, o in trials if run.preset == preset and run.learning_rate == rate)

    return max(rates, key=final)


def _all(runs: Sequence[Run], processes: int) -> list[tuple[Run, Outcome]]:
    """Each with its outcome, in the order given, whichever ended first."""
    found: dict[Run, Outcome] = {}
    for number, (run, outcome) in enumerate(_ended(runs, processes), 1):
        found[run] = outcome
        said = f"staleness {run.staleness}, seed {run.seed}, rate {run.learning_rate:g}: {outcome.final:.3f}"
        print(f"{number}/{len(runs)} {run.preset}, {said}", file=sys.stderr, flush=True)
    return [(run, found[run]) for run in runs]


def _ended(runs: Sequence[Run], processes: int) -> Iterator[tuple[Run, Outcome]]:
    if processes == 1:
        torch.set_num_threads(1)
        yield from ((run, train(run)) for run in runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        pending = {pool.submit(train, run): run for run in runs}
        yield from ((pending[done], done.result()) for done in as_completed(pending))


def _short(value: Any) -> Any:
    """The same with numbers of six digits: nobody reads more of them, and the file is kept with the source."""
    if isinstance(value, dict):
        return {name: _short(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def asked(options: argparse.Namespace) -> Sweep:
    """The sweep that the command line asks for."""
    if options.quick:
        return QUICK
    return Sweep(
        options.presets,
        options.staleness,
        tuple(range(1, options.seeds + 1)),
        rates=options.rates,
        steps=options.steps,
        minibatches=options.minibatches,
    )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.staleness", description="reward against staleness, on a toy")
    parser.add_argument("--seeds", type=int, default=len(Sweep.seeds), help="how many")
    parser.add_argument("--steps", type=int, default=Sweep.steps)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--staleness", type=int, nargs="+", default=list(STALENESS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates to choose from")
    parser.add_argument("--minibatches", type=int, default=1, help="updates a step")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="a few short runs, to see that it works")
    parser.add_argument("--redraw", action="store_true", help="run nothing: tables and picture from the raw numbers")
    tables = Path("benchmarks/staleness.md")
    parser.add_argument("--tables", type=Path, default=tables, help="with the raw numbers beside them")
    parser.add_argument("--picture", type=Path, default=Path("docs/staleness.png"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parsed(arguments)
    raw = options.tables.with_suffix(".json")
    found = json.loads(raw.read_text()) if options.redraw else measured(asked(options), options.processes)
    for path in (raw, options.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps(_short(found)) + "\n")
    options.tables.write_text(markdown(found))
    options.picture.write_bytes(picture(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
