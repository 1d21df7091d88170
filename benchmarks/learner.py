"""What packing and lean log-probs are worth: the learner's step against a plain padded one, as ratios of the same run.

Invariant: all sides train the same model on the same sequences with the same loss and optimizer, in alternation, and
count the same tokens, those of prompts and completions, padding left out. Refuses to know where groups come from.

On a CPU the model is SmolLM2-135M with fewer layers and, in proportion, a smaller vocabulary, so that body and head
share the work as they do in the whole one; time is this process's own on one thread, which others at work do not
lengthen. On CUDA it is the whole one, and Qwen2.5-0.5B's shape.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import learner_sides as of
from benchmarks import memory, publication
from benchmarks.findings import Finding, Leg, machine, ratios, run
from benchmarks.learner_sides import PADDED, SHARED, SORTED, Shape, Side
from benchmarks.lengths import LENGTHS, groups_of, real_tokens
from benchmarks.padded import batches_of, padding
from broker.heap import keep_what_is_freed
from broker.schema import RolloutGroup

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
ASKED = 2.0  # of the learner against the padded loop, on a GPU
MOST_OFF = 2.0  # per cent, a loss from the padded loop's: bfloat16 on a GPU; float32 agrees to about 1e-3
STALL = 2.0  # per cent of the step
SMALLEST_LOSS = 1e-2  # relative to which a smaller one is looked at
GSM8K = "GSM8K"
WARM_UP = 3  # steps of a side before what it says of itself counts
TEXT = """\
*padded loop*: batches in the order of arrival, padded to their longest, logits of everything, each prompt once a
completion; *packed* computes prompts as often, *shared prompts* once a group of 8, which is what the learner chooses by
itself for such lengths. Seconds on a CPU are the process's own, {threads} thread(s).
"""


@dataclass
class Seen:
    """Of one side, a value a round."""

    speed: list[float] = field(default_factory=list)  # real tokens a second
    off: list[float] = field(default_factory=list)  # per cent, the loss from the padded loop's
    flops: list[float] = field(default_factory=list)  # a second


def compare(shape: Shape, sides: dict[str, Side], lengths: str, rounds: int) -> dict[str, Seen]:
    """Each side in each round, after one that only warms up."""
    seen = {name: Seen() for name in sides}
    for number in range(rounds + 1):
        groups = batch(shape, lengths, number)
        found = {name: timed(sides[name], groups) for name in (sides if number % 2 else reversed(sides))}
        reference = found[PADDED][1]
        for name, (seconds, loss) in found.items():
            if number:
                seen[name].speed.append(real_tokens(groups) / seconds)
                seen[name].off.append(100 * abs(loss - reference) / max(abs(reference), SMALLEST_LOSS))
                seen[name].flops.append(sides[name].flops() / seconds)
        told = ", ".join(f"{name} {real_tokens(groups) / seconds:,.0f}/s" for name, (seconds, _) in found.items())
        print(f"{shape.name}, {lengths}, round {number}: {told}", file=sys.stderr, flush=True)
    return seen


def batch(shape: Shape, lengths: str, number: int) -> list[RolloutGroup]:
    """Of a round."""
    return groups_of(LENGTHS[lengths](), number, shape.groups, shape.vocabulary)


def timed(side: Side, groups: Sequence[RolloutGroup]) -> tuple[float, float]:
    """Seconds of a step, and its loss."""
    clock = time.perf_counter if ON_GPU else time.process_time
    started = clock()
    loss = side.step(groups)
    synchronise()
    return clock() - started, loss


def synchronise() -> None:
    """Wait for the device, where it is one to wait for."""
    if ON_GPU:
        torch.cuda.synchronize()


def measure_shape(shape: Shape, lengths: Sequence[str], rounds: int) -> Iterator[Finding]:
    """All that is told of one model; the first of `lengths` is the one that matters."""
    sides, first = of.sides(shape, DEVICE), lengths[0]
    yield from peaks(shape, sides, first)
    if not ON_GPU:
        keep_what_is_freed()  # as the learner does, for both
    seen = {name: compare(shape, sides, name, rounds) for name in lengths}
    for name, found in seen.items():
        yield from compared(shape, found, name)
    yield from absolute(shape, seen[first], first)
    yield from phases(shape, sides[SHARED])
    if ON_GPU:
        yield from waits(shape, sides, first)
    yield published(shape, sides[SHARED], first, rounds)


def compared(shape: Shape, seen: dict[str, Seen], lengths: str) -> Iterator[Finding]:
    """Ratios to the padded loop."""
    rows = [batch(shape, lengths, number + 1) for number in range(len(seen[PADDED].speed))]
    padded = statistics.mean(padding(batches_of(groups, shape.rows)) for groups in rows)
    for name, mine in seen.items():
        if name == PADDED:
            continue
        least = ASKED if ON_GPU and lengths == GSM8K and name == SHARED else None
        note = f"of the padded loop's, of which {padded:.0%} is padding"
        speed = ratios(mine.speed, seen[PADDED].speed)
        yield Finding(f"{shape.name}, {lengths}, {name}: real tokens/s", speed, least=least, note=note)
        yield Finding(f"{shape.name}, {lengths}, {name}: loss, off by", tuple(mine.off), "%", most=MOST_OFF)


def absolute(shape: Shape, seen: dict[str, Seen], lengths: str) -> Iterator[Finding]:
    """Tokens a second, and what share of the device they are where its peak is known."""
    peak = of.peak_flops(DEVICE)
    for name, mine in seen.items():
        yield Finding(f"{shape.name}, {lengths}, {name}: real tokens", tuple(mine.speed), "/s")
        if peak is not None:
            share = tuple(100 * flops / peak for flops in mine.flops)
            note = "a prompt counts as often as it is computed"
            yield Finding(f"{shape.name}, {lengths}, {name}: MFU", share, "%", note=note)


def phases(shape: Shape, side: Side) -> Iterator[Finding]:
    """What of a step each phase took, in the learner's own words; not of the first ones, in which memory is new."""
    stats = side.stats[WARM_UP:]
    for phase in stats[0].phase_seconds:
        share = tuple(100 * one.phase_seconds[phase] / one.train_seconds for one in stats)
        yield Finding(f"{shape.name}, {SHARED}: share of the step in {phase}", share, "%")


def peaks(shape: Shape, sides: dict[str, Side], lengths: str) -> Iterator[Finding]:
    """What a step adds to weights and moments. On a CPU before the allocator is told to keep memory."""
    groups = batch(shape, lengths, 0)
    for name, side in sides.items():
        side.step(groups)  # the moments are made, and kernels chosen
        used = memory.added(lambda step=side.step: step(groups))  # type: ignore[misc]
        note = f"{shape.rows} rows at once" if name in (PADDED, SORTED) else f"{shape.tokens:,} tokens at once"
        yield Finding(f"{shape.name}, {lengths}, {name}: memory that a step adds", (used,), "MB", note=note)


def waits(shape: Shape, sides: dict[str, Side], lengths: str) -> Iterator[Finding]:
    """How often the host waits for a CUDA device within a step, as torch sees it."""
    for name, side in sides.items():
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            side.step(batch(shape, lengths, 1))
        torch.cuda.set_sync_debug_mode("default")
        times = sum("synchroniz" in str(one.message) for one in seen)
        yield Finding(f"{shape.name}, {name}: times that the host waits for the device in a step", (times,), "")


def published(shape: Shape, side: Side, lengths: str, rounds: int) -> Finding:
    """The stall of a publication."""
    assert side.trainer is not None
    batches = [batch(shape, lengths, number) for number in range(rounds + publication.WARM_UP)]
    shares = tuple(100 * share for share in publication.stalls(side.trainer, batches, synchronise))
    return Finding(f"{shape.name}, {SHARED}: stall of a publication, share of the step", shares, "%", most=STALL)


def head() -> Iterator[Finding]:
    """Log-probs and their gradient, from hidden states through the head, at the whole vocabulary."""
    used = memory.peaks()
    note = f"{memory.TOKENS:,} tokens, vocabulary {memory.VOCABULARY:,}, float32: {used['chunks']:,.0f} MiB at the peak"
    yield Finding("log-probs in chunks: memory, of all at once", (used["chunks"] / used["whole"],), note=note)


def shapes(options: argparse.Namespace) -> list[Shape]:
    """That are measured here."""
    if options.quick:
        return [of.tiny(rows=8, tokens=100, groups=2)]
    if not ON_GPU:
        return [of.smollm2(options.layers)]
    much = {"rows": 32, "tokens": 16384, "groups": 64, "sides": of.EVERY}
    first = of.given(options.model, **much) if options.model else of.smollm2(30, **much)
    return [first, of.qwen2(rows=16, tokens=8192, groups=32, sides=of.FEW)]


def measure(options: argparse.Namespace) -> Leg:
    """All of it."""
    torch.set_num_threads(options.threads)
    lengths, rounds = (("short",), 1) if options.quick else (options.lengths, options.rounds)
    findings = list[Finding]()
    for shape in shapes(options):
        findings += measure_shape(shape, lengths, rounds)
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
    if not options.quick:
        findings += head()
    where = torch.cuda.get_device_name() if ON_GPU else ""
    return Leg("learner", machine(where), tuple(findings), TEXT.format(threads=torch.get_num_threads()))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="on CUDA: directory of a model of about 135M, if not random weights")
    parser.add_argument("--layers", type=int, default=1, help="on a CPU: of SmolLM2-135M's 30")
    parser.add_argument("--lengths", nargs="+", choices=list(LENGTHS), default=[GSM8K, "even"])
    parser.add_argument("--rounds", type=int, default=5, help="of each lengths")
    parser.add_argument(
        "--threads", type=int, default=1, help="on a CPU: more only where nothing else runs; they wait for each other"
    )
    run("learner", measure, parser)


if __name__ == "__main__":
    main()
