"""`make bench LEGS=transport`: what getting groups from generators to the learner costs, beside what else one could do.

*bare* is redis-py with the commands that our contract needs and the same bytes, *pickle* a neighbour's way
(`transport_pickle.py`), *redis-benchmark* how fast the server takes such entries from a client in C, which is no more
than a part of it. Invariant: what is asked for is asked of the median over all cells of a row, and every round is kept.
Refuses to know how a way does it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks.findings import Finding, Leg, machine, run
from benchmarks.instrumentation import times
from benchmarks.transport_cell import C_CLIENT, HEAD, TCP, UNIX, Cell, server, told
from benchmarks.transport_groups import size_of
from benchmarks.transport_trial import Load, trial
from benchmarks.transport_ways import WAYS
from deploy.recipe import read

KB = 1 << 10
GROUPS = {4 * KB: 1600, 16 * KB: 1600, 64 * KB: 960, 1024 * KB: 192}  # of a trial, by size
DEMO = Path("recipes/demo.toml")
AGAINST = {
    "bare": "bare redis-py with the same commands",
    "pickles": "pickles, one entry a read",
    "pickles with texts": "pickles with all that the neighbour sends",
    C_CLIENT: "redis-benchmark's XADD alone",
}
LEAST = {("bare", 64 * KB): 0.6, ("pickles", 16 * KB): 5.0}
MOST_CODING, MOST_OF_DEMO = 5.0, 1.0  # %


def of_cells(played: Sequence[Cell], sizes: Sequence[int], sockets: Sequence[str]) -> list[Finding]:
    """A row for each size and socket: all numbers of producers, all rounds."""
    rows = []
    for other, size, socket in product(("bare", "pickles", C_CLIENT), sizes, sockets):
        of = [cell for cell in played if (cell.load.size, cell.socket) == (size, socket)]
        if values := tuple(value for cell in of for value in cell.against(other)):
            what = f"{told(size)} groups over {socket}, against {AGAINST[other]}"
            rows.append(Finding(what, values, least=LEAST.get((other, size))))
    return rows


def of_the_learner(url: str, groups: int, rounds: int) -> list[Finding]:
    """Rows of how fast one learner takes in and settles what is there already: it is one, generators are many."""
    size, others = 16 * KB, ("bare", "pickles", "pickles with texts")
    whole = Load(size, 2, groups, stored=True)
    whole = replace(whole, groups=max(1, groups // whole.round) * whole.round)
    cell = Cell(whole, TCP)
    cell.play(url, ("ours", *others), rounds)
    what = f"{told(size)} groups that lie there, by the learner alone, against"
    return [
        Finding(f"{what} {AGAINST[other]}", cell.against(other), least=LEAST.get((other, size))) for other in others
    ]


def of_the_codec(url: str, groups: int, rounds: int) -> list[Finding]:
    """Rows of what encoding and decoding take of the whole."""
    size = 64 * KB
    busy = Load(size, 2, groups)
    alone = Load(size, 1, max(32, groups // 8), slots=1, groups_per_step=1, depth=0)
    shares = [tuple(trial(WAYS["ours, timed"], url, load) for _ in range(rounds)) for load in (busy, alone)]
    what = f"{told(size)} groups: encoding and decoding, of"
    return [
        Finding(
            f"{what} the processor time of all, many groups at a time",
            tuple(100 * outcome.coding / outcome.work for outcome in shares[0]),
            "%",
            most=MOST_CODING,
        ),
        Finding(
            f"{what} the time that one group takes from ticket to verdict",
            tuple(100 * outcome.coding * outcome.rate for outcome in shares[1]),
            "%",
        ),
    ]


def of_the_demo(url: str, groups: int, rounds: int, seconds: float | None, steps: int) -> Finding:
    """What a group of the demo costs, one at a time, beside what it takes the demo's generator."""
    sampling = read(DEMO).sampling
    how = "as given"
    if seconds is None:
        _, seconds = times(DEMO, steps)
        how = f"from group to group in a run of {steps} steps"
    load = Load(size_of(sampling.max_tokens), 1, groups, slots=1)
    shares = tuple(100 * trial(WAYS["ours"], url, load).work / seconds for _ in range(rounds))
    note = f"{seconds:.2f} s a group, {how}"
    return Finding(
        "processor time of all for a group of the demo, of its sampling", shares, "%", None, MOST_OF_DEMO, note
    )


def measure(options: argparse.Namespace) -> Leg:
    """All of it."""
    if options.quick:
        options.sizes, options.sockets, options.producers, options.rounds = [16 * KB], [TCP], [2], 1
        options.demo_seconds = options.demo_seconds or 1.0
    few = 16 if options.quick else 1
    played, rows = list[Cell](), list[Finding]()
    for socket in options.sockets:
        with server(socket) as url:
            for size, producers in product(options.sizes, options.producers):
                cell = Cell(Load(size, producers, GROUPS[size] // few), socket)
                cell.play(url, ("ours", "bare", "pickles"), options.rounds)
                played.append(cell)
                print(cell.row(), file=sys.stderr, flush=True)
    rows += of_cells(played, options.sizes, options.sockets)
    with server(TCP) as url:
        groups = GROUPS[16 * KB] // few
        rows += of_the_learner(url, groups, options.rounds)
        rows += of_the_codec(url, groups, options.rounds)
        rows.append(of_the_demo(url, groups, options.rounds, options.demo_seconds, options.demo_steps))
    return Leg("transport", machine(), tuple(rows), "\n".join([HEAD, *(cell.row() for cell in played)]))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(GROUPS), default=list(GROUPS), help="bytes")
    parser.add_argument("--sockets", nargs="+", choices=[TCP, UNIX], default=[TCP, UNIX])
    parser.add_argument("--producers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--demo-seconds", type=float, help="a group of the demo takes; not given: the demo is run")
    parser.add_argument("--demo-steps", type=int, default=4, help="of that run")
    run("transport", measure, parser)


if __name__ == "__main__":
    main()
