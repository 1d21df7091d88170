"""`python -m tests.system.crash_matrix`: every cell of the crash matrix, and its table (`make crash-matrix`).

Each row is a run of one learner and two generators over a real Redis, 8 steps of 2 groups, during which one thing
happens. See tests/system/crash.py for what must hold afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from tests.system.crash import MODES, Event, Weights, play
from tests.system.processes import ROOT
from tests.system.teaching import taught_to_add

TABLE = ROOT / "benchmarks/crash-matrix.md"
ZERO, TWO, READY, SHIPPED = MODES

LEARNER = {
    "learner.announced": 1,
    "learner.claimed": 4,
    "learner.consumed": 1,
    "learner.batch-taken": 4,
    "learner.trained": 5,
    "learner.steps-done": 1,
    "learner.ended": 1,
    "recovery.first-checkpoint": 1,
    "recovery.opened": 1,
    "publisher.begun": 3,
    "publisher.uploaded": 4,
    "publisher.committed": 2,
    "policy.filled": 4,
    "policy.number-used": 5,
    "fence.watched": 9,
    "fence.committed": 8,
    "checkpoint.state-written": 2,
    "checkpoint.flushed": 2,
    "checkpoint.durable": 2,
    "checkpoint.final": 1,
    "checkpoint.pruning": 1,
    "evaluation.recorded": 1,
}
GENERATOR = {
    "generator.joined": 1,
    "generator.claimed": 3,
    "generator.leased": 3,
    "generator.opened": 3,
    "generator.refreshed": 3,
    "generator.sampling": 3,
    "generator.sampled": 3,
    "generator.verified": 3,
    "generator.published": 3,
    "generator.renewed": 2,
}
FREIGHT = {"freight.chunk": 9, "freight.appeared": 4}
REBUILDING, REPLAYING = ("recovery.rebuilding", "recovery.rebuilt"), ("recovery.loaded", "recovery.repeated")
REDIS = ("RESTART", "STALL", "FORGET", "LOSE")
# Bit-exact resume at max_staleness 0, beside the whole table at 2: one point of each kind.
AT_ZERO = (
    "learner.claimed",
    "learner.consumed",
    "learner.batch-taken",
    "learner.trained",
    "learner.steps-done",
    "publisher.uploaded",
    "publisher.committed",
    "policy.filled",
    "policy.number-used",
    "fence.committed",
    "checkpoint.state-written",
    "checkpoint.durable",
    "checkpoint.final",
)


def events() -> Iterator[Event]:
    """Every row."""
    for point, times in LEARNER.items():
        yield Event("KILL", point, times, TWO)
    for point in AT_ZERO:
        yield Event("KILL", point, LEARNER[point], ZERO)
    for point in ("learner.batch-taken", "publisher.uploaded", "policy.number-used", "checkpoint.durable"):
        yield Event("KILL", point, LEARNER[point], READY)
    for point in ("learner.claimed", "learner.trained", "publisher.uploaded", "fence.watched", "checkpoint.flushed"):
        yield Event("STOP", point, LEARNER[point], READY)
    for (point, times), mode in product(GENERATOR.items(), (TWO, READY)):
        yield Event("KILL", point, times, mode)
    for point in ("generator.claimed", "generator.opened", "generator.sampled", "generator.verified"):
        yield Event("STOP", point, GENERATOR[point], READY)
    yield Event("STOP", "generator.sampled", 3, ZERO)
    for point, times in FREIGHT.items():
        yield Event("KILL", point, times, SHIPPED)
    for point in ("generator.leased", "generator.opened", "generator.refreshed"):
        yield Event("KILL", point, GENERATOR[point], SHIPPED)
    for what, victims, mode in product(REDIS, ("redis", "redis and learner"), MODES):
        if (what, victims) != ("STALL", "redis and learner"):
            yield Event(what, victims, 4, mode)
    for what, point, mode in product(("FORGET", "LOSE"), REBUILDING, (TWO, READY)):
        yield Event(what, "redis and learner", 5, mode, point)
    for point, mode in product(REPLAYING, (TWO, READY)):
        yield Event("KILL", "publisher.uploaded", 6, mode, point)


# What `make test` runs: one of each kind, of both sides and of Redis.
STRATIFIED = (
    Event("KILL", "publisher.uploaded", 4, TWO),
    Event("KILL", "policy.number-used", 5, READY),
    Event("KILL", "checkpoint.durable", 2, ZERO),
    Event("KILL", "fence.committed", 8, TWO),
    Event("KILL", "generator.opened", 3, READY),
    Event("KILL", "generator.verified", 3, TWO),
    Event("STOP", "generator.sampled", 3, READY),
    Event("FORGET", "redis and learner", 4, TWO),
    Event("LOSE", "redis", 4, TWO),
    Event("FORGET", "redis and learner", 5, READY, "recovery.rebuilt"),
    Event("STALL", "redis", 4, READY),
    Event("LOSE", "redis", 4, SHIPPED),
)


def rows(chosen: Iterable[Event], root: Path) -> Iterator[tuple[Event, str, bool]]:
    """Play them; what is to be written about each, and whether all held."""
    model, undisturbed = taught_to_add(root / "models"), dict[str, Weights]()
    for mode in MODES:
        undisturbed[mode] = play(root / f"undisturbed-{len(undisturbed)}", model, None, mode, None).weights
    for number, event in enumerate(chosen):
        try:
            outcome = play(root / f"cell-{number}", model, event, event.mode, undisturbed[event.mode])
        except AssertionError:
            traceback.print_exc()
            yield event, "**FAILED**", False
            continue
        exact = "same weights, bit for bit" if event.mode.startswith("strict") else f"{outcome.stale} stale"
        yield event, f"{outcome.compared} tokens true, {exact}, {outcome.seconds:.0f} s", True


def main() -> int:
    """Write the table; status 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="make crash-matrix", description="kill everything everywhere, and look")
    parser.add_argument("--only", default="", help="rows whose label contains this; nothing is written then")
    options = parser.parse_args()
    chosen = [event for event in events() if options.only in event.label]
    began, failed, lines = time.monotonic(), 0, list[str]()
    with tempfile.TemporaryDirectory(prefix="headrace-crash-") as folder:
        for event, text, held in rows(chosen, Path(folder)):
            failed += not held
            lines.append(f"| {event.what} | {event.where} | {event.times} | {event.mode} | {text} |")
            print(f"{len(lines)}/{len(chosen)}", lines[-1], flush=True)
            if not options.only:
                TABLE.write_text("\n".join([*_head(len(lines), failed, time.monotonic() - began), *lines, ""]))
    print(f"{len(chosen)} runs, {failed} failed")
    return int(failed > 0)


def _head(runs: int, failed: int, seconds: float) -> list[str]:
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    today = datetime.date.today().isoformat()
    return [
        "# The crash matrix",
        "",
        f"`make crash-matrix`, {today}, {machine}: {runs} runs, {failed} failed, {seconds / 60:.0f} minutes.",
        "",
        "Each row is a run of a learner and two generators: 8 steps of 2 groups, checkpoints every 3 steps, three",
        "evaluations, leases of 2 s. KILL is SIGKILL at that point the n-th time it is reached, and a restart. STOP is",
        "SIGSTOP there for longer than a lease, then SIGCONT. RESTART is SIGKILL of Redis and a restart, STALL SIGSTOP",
        "for 6 s, FORGET a restart without everything since about a step before, LOSE one with an empty disk. With",
        "`learner`, the learner is killed at the same moment. Every run ended by itself with 8 steps; both kinds of",
        "books balanced and were closed, as sets (I1); no token was beyond the bound (I2); in strict runs the final",
        "weights are those of an undisturbed run to the bit (I3); the log-prob of each token published equals that of",
        "a full pass of the version it names (I4, *tokens true*). *stale* counts groups dropped.",
        "",
        "| event | where | n | run | outcome |",
        "|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    sys.exit(main())
