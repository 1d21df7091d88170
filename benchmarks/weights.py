"""From a snapshot of the weights to the last generator that has them: seconds and bytes, by backend and size of model.

Invariant: versions are written, pointed at and read by production's stores, readers are processes of their own, and
every version that a reader says it holds was checked byte for byte. Refuses to know engines: how long one stands still
to load a version is the generator's leg, how long a learner does to make a snapshot the learner's.

Between versions a given share of the numbers moves to a neighbour in bfloat16, by default what real training at a
learning rate of 1e-6 was seen to change (`changed`, which also measures the bytes of real versions).
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import redis
import torch

from benchmarks.changed import Change, changes
from benchmarks.findings import Finding, Leg, machine, ratios, run
from benchmarks.weights_lane import BACKENDS, Lane, Walk, Way, server
from broker.shipper import CHUNK_BYTES

SIZES = {"135M": 134_515_008, "0.5B": 494_032_768, "1.5B": 1_543_714_304}  # parameters, heads tied
QUICK = {"1M": 1_000_000}
RATES = (1e-6, 5e-6, 2e-5)
DELTA_MOST = 5.0  # per cent of the whole version's bytes


def ways(numbers: int, rounds: int, readers: int, changed: float) -> dict[str, Way]:
    """Every backend, version by version in turn; the first, which nobody held before, is not counted."""
    with server() as started, tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        walk = Walk(numbers, changed)
        lanes = [Lane(name, started.url, Path(scratch), rounds, readers) for name in BACKENDS]
        try:
            for version in range(rounds + 1):
                for lane in lanes:
                    lane.publish(version, walk)
                walk.step()
        finally:
            for lane in lanes:
                lane.close()
        return {lane.name: lane.way for lane in lanes}


def bare(numbers: int, rounds: int) -> dict[str, list[float]]:
    """Seconds for the same bytes with nothing around them: a copy of a file, and to Redis and back in chunks."""
    raw, found = Walk(numbers, 0.0).weights.view(torch.uint8).numpy().tobytes(), dict[str, list[float]]()
    with server() as started, tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        client, path = redis.Redis.from_url(started.url, protocol=2), Path(scratch) / "one"
        path.write_bytes(raw)
        for _ in range(rounds):
            began = time.perf_counter()
            shutil.copyfile(path, path.with_name("other"))
            found.setdefault("copy of the file", []).append(time.perf_counter() - began)
            starts = range(0, len(raw), CHUNK_BYTES)
            began = time.perf_counter()
            for start in starts:
                client.set(f"bare:{start}", raw[start : start + CHUNK_BYTES])
            found.setdefault("into Redis", []).append(time.perf_counter() - began)
            began = time.perf_counter()
            for start in starts:
                client.get(f"bare:{start}")
            found.setdefault("out of Redis", []).append(time.perf_counter() - began)
        client.close()
    return found


def of_size(name: str, numbers: int, rounds: int, readers: int, changed: float) -> list[Finding]:
    """The rows of one size of model."""
    found, limits, rows = ways(numbers, rounds, readers, changed), bare(numbers, rounds), list[Finding]()
    for backend, way in found.items():
        rows.append(Finding(f"{name}, {backend}: snapshot until it is published", tuple(way.write), "s"))
        rows.append(Finding(f"{name}, {backend}: from there to {readers} generators", tuple(way.reach), "s"))
    whole, differences = found["redis, whole"], found["redis, differences"]
    size = 2 * numbers
    rows += [
        Finding(f"{name}: bytes that a generator takes, whole", tuple(b / size * 100 for b in whole.received), "%"),
        Finding(
            f"{name}: bytes that a generator takes, differences",
            tuple(b / size * 100 for b in differences.received),
            "%",
            most=DELTA_MOST,
            note=f"{changed:.1%} of the numbers changed",
        ),
        Finding(f"{name}: to the generators, differences against whole", ratios(differences.reach, whole.reach), "×"),
    ]
    rows += [Finding(f"{name}, nothing around: {what}", tuple(times), "s") for what, times in limits.items()]
    return rows


async def real(model: Path, rates: Sequence[float], steps: int) -> list[Finding]:
    """Rows of real training; the first step, which moves everything by the learning rate, is a row of its own."""
    rows = []
    for rate in rates:
        found = [change async for change in changes(model, rate, steps)]
        first, later = found[:1], found[1:]
        what = f"learning rate {rate:g}: bytes of a difference"
        rows += [
            Finding(f"{what}, first step", _travel(first), "%", note=_unchanged(first)),
            Finding(f"{what}, later steps", _travel(later), "%", most=DELTA_MOST, note=_unchanged(later)),
        ]
    return rows


def _travel(found: Sequence[Change]) -> tuple[float, ...]:
    return tuple(100 * change.bytes for change in found)


def _unchanged(found: Sequence[Change]) -> str:
    return (
        f"{100 - 100 * float(np.median([change.numbers for change in found])):.2f} % of the numbers keep all their bits"
    )


def measure(options: argparse.Namespace) -> Leg:
    """All of it."""
    sizes = QUICK if options.quick else {name: SIZES[name] for name in options.sizes}
    rows = []
    for name, numbers in sizes.items():
        rows += of_size(name, numbers, options.rounds, options.readers, options.changed)
    if options.model is not None:
        rows += asyncio.run(real(options.model, options.rates, options.steps))
    return Leg("weights", machine(), tuple(rows))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["135M", "0.5B"])
    parser.add_argument("--readers", type=int, default=2, help="generators")
    parser.add_argument("--rounds", type=int, default=5, help="versions of each backend that count")
    parser.add_argument("--changed", type=float, default=0.0075, help="share of the numbers that a step changes")
    parser.add_argument("--model", type=Path, help="directory of a model to train a few steps of, for real differences")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates for that")
    parser.add_argument("--steps", type=int, default=6, help="steps at each of them")
    run("weights", measure, parser)


if __name__ == "__main__":
    main()
