"""`python -m benchmarks.fuzz`: broken messages by the hundred thousand, for every decoder, as a table.

Invariant: what the table counts as refused was refused with a reason; anything else that a decoder did ends this with
the input's seed. Refuses to know what the decoders read.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.decoders import Decoder, decoders
from benchmarks.mutation import mutated

SHOWN = 3  # reasons a decoder
SLOWEST = 5.0  # seconds; more is a hang
GROWTH = 512.0  # MiB over the whole; more is a leak, or a bomb that went off


@dataclass
class Tally:
    """What a decoder did."""

    inputs: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    growth: float = 0.0  # MiB

    def row(self, name: str) -> str:
        """As a line of the table."""
        most = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.most_common(SHOWN))
        others = len(self.reasons) - SHOWN
        refused = sum(self.reasons.values())
        more = f", {others} more" if others > 0 else ""
        figures = f"{self.inputs:,} | {self.accepted:,} | {refused:,} | {1000 * self.slowest:.1f} | {self.growth:.1f}"
        return f"| {name} | {figures} | {most}{more} |"


def peak() -> float:
    """The most memory that this process ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def kind_of(reason: str) -> str:
    """A reason without the paths, numbers and values in it."""
    words = re.sub(r"/\S+", "…", reason)
    words = re.sub(r"'[^']*'|\"[^\"]*\"|\d+(\.\d+)?|\(at [^)]*\)", "…", words)
    return re.sub(r"[|\s]+", " ", words)[:48].strip()


def fuzz(decoder: Decoder, inputs: int, seed: int) -> Tally:
    """Feed one decoder. Raises `RuntimeError` naming the input that it did not take as it should."""
    tally, before = Tally(), peak()
    for number in range(inputs):
        chance = random.Random(f"{seed} {decoder.name} {number}")
        raw = mutated(chance, chance.choice(list(decoder.good)))
        started = time.perf_counter()
        try:
            reason = decoder.try_it(raw)
        except Exception as error:
            where = f"{decoder.name}, seed {seed}, input {number}"
            raise RuntimeError(f"{where}: {type(error).__name__}: {error}: {raw[:300]!r}") from error
        seconds = time.perf_counter() - started
        tally.inputs += 1
        tally.slowest = max(tally.slowest, seconds)
        if reason:
            tally.reasons[kind_of(reason)] += 1
        else:
            tally.accepted += 1
    tally.growth = peak() - before
    return tally


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz", description="feed every decoder broken messages")
    parser.add_argument("--inputs", type=int, default=120_000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started, first = time.perf_counter(), peak()
    print("| decoder | inputs | accepted | refused | slowest, ms | memory, MiB | most frequent reasons |")
    print("|---|---|---|---|---|---|---|")
    total, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        found = decoders(Path(folder))
        for decoder in found:
            for good in decoder.good:
                assert decoder.try_it(good) == "", (decoder.name, decoder.try_it(good))
            tally = fuzz(decoder, -(-options.inputs // len(found)), options.seed)
            print(tally.row(decoder.name), flush=True)
            total, slowest = total + tally.inputs, max(slowest, tally.slowest)
    growth = peak() - first
    print(f"\n{total:,} inputs in {time.perf_counter() - started:.0f} s, seed {options.seed}; nothing but a value or a")
    print(f"reason came back; the slowest took {1000 * slowest:.0f} ms, memory grew by {growth:.0f} MiB in all.")
    if slowest > SLOWEST or growth > GROWTH:
        raise SystemExit("headrace: an input took too long, or too much memory")


if __name__ == "__main__":
    main()
