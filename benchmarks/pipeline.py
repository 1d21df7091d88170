"""Asynchronous against synchronous: whole runs with equal hardware and seeds, as ratios, and a picture of who waited.

Invariant: every mode runs the same recipe, seeds and number of steps, every step trains on as many groups, and each
mode has the whole machine in the best way it can: on a CPU the synchronous one computes with all cores on whichever
side is at work. Refuses to know how a run works.

The bound of a seed comes from a run whose sides work one after the other (`pipeline_alone`): sides that never wait for
each other take max(t_gen, t_train) a sample, one after the other the sum.

A run that was made before, with the same flags, is not made again: `--kept` names the file with what was seen of them,
so that the parts of this can be run one by one (`--modes alone sync --seeds 2`).
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from benchmarks.findings import Finding, Leg, machine, run
from benchmarks.pipeline_run import Alone, Ran, dossier, keep, kept, play, seen, seen_alone
from monitoring.gantt import gantt, height

ON_GPU = torch.cuda.is_available()
CORES = len(os.sched_getaffinity(0))
ALONE, SYNC, ASYNC = "alone", "sync", ("async, bound 1", "async, bound 4")
OTHER = "async, bound 4, other threads"  # a CPU's: as many as it has cores a side, or one, whichever ASYNC has not
BALANCE = "balance"  # a GPU's: ASYNC[1] in short, for each number of engines
FLOW = {
    ALONE: "--run.max_staleness {steps} --learner.pipeline_depth {last}",
    SYNC: "--run.max_staleness 0 --learner.pipeline_depth 0",
    ASYNC[0]: "--run.max_staleness 1 --learner.pipeline_depth 1",
    ASYNC[1]: "--run.max_staleness 4 --learner.pipeline_depth 2",
    OTHER: "--run.max_staleness 4 --learner.pipeline_depth 2",
}
ALIKE = """--learner.eval_problems 0 --learner.stop_when_solved false --learner.max_degenerate_in_a_row 100000
    --objective.degenerate keep --learner.checkpoint_every 1000 --broker.audit_entries 40000"""
IN_GPU = """--policy.dtype bfloat16 --generator.dtype bfloat16 --generator.enforce_eager false --generator.threads 0
    --learner.threads 0 --learner.groups_per_step 128 --learner.tokens_per_micro_batch 16384
    --sampling.max_tokens 128 --generator.slots 64 --generator.count {engines}
    --generator.gpu_memory_fraction {fraction:.3f}"""
MEMORY = 0.4  # of a GPU, for all engines together
PICTURE = Path("docs/pipeline-gantt.png")


def flags_of(mode: str, options: argparse.Namespace, engines: int = 1, steps: int = 0) -> list[str]:
    """Of the launcher."""
    steps = steps or options.steps
    if ON_GPU:
        hardware = IN_GPU.format(engines=engines, fraction=min(0.15, MEMORY / engines))
    else:
        other = CORES if options.threads == 1 else 1
        threads = {SYNC: CORES, OTHER: other}.get(mode, options.threads)
        hardware = f"--generator.threads {threads} --learner.threads {threads}"
    flow = FLOW[mode].format(steps=steps, last=steps - 1)
    model = f"--run.model {options.model}" if options.model else ""
    return shlex.split(f"{ALIKE} {flow} --run.steps {steps} {hardware} {model} {options.flags}")


class Runs:
    """Of one call and, where they had the same flags, of earlier ones."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.known = options, kept(options.kept)
        self.recipe = Path("recipes/tiny.toml") if options.quick else options.recipe

    def all(self, engines: int) -> list[Ran | Alone]:
        """Mode after mode within a seed, so that slow hours are everybody's."""
        for seed in self.options.seeds:
            for mode in self.options.modes:
                self.one(mode, seed, flags_of(mode, self.options, engines))
        wanted = {(m, s, " ".join(flags_of(m, self.options, engines))) for m in FLOW for s in self.options.seeds}
        return [ran for ran in self.known if (ran.mode, ran.seed, ran.flags) in wanted]

    def one(self, mode: str, seed: int, flags: list[str]) -> Ran | Alone:
        """A run that is known, or is made now."""
        for ran in self.known:
            if (ran.mode, ran.seed, ran.flags) == (mode, seed, " ".join(flags)):
                return ran
        if mode == ALONE:
            folder = play(self.recipe, mode, seed, flags, "benchmarks.pipeline_alone")
        else:
            folder = play(self.recipe, mode, seed, flags)
        look = seen_alone if mode == ALONE else seen
        found = look(folder, mode, seed, " ".join(flags), self.options.skip)
        keep(self.options.kept, found)
        self.known.append(found)
        return found

    def engines(self) -> int:
        """Of those to choose from the number with which both sides together are the fastest, side by side."""
        choice: list[int] = self.options.engines if ON_GPU else [1]
        if len(choice) == 1:
            return choice[0]
        steps = max(self.options.skip + 4, self.options.steps // 3)
        speed = {}
        for number in choice:
            ran = self.one(BALANCE, 0, flags_of(ASYNC[1], self.options, number, steps))
            assert isinstance(ran, Ran)
            speed[number] = ran.samples_per_second
        return max(speed, key=lambda number: speed[number])


def rows(found: Sequence[Ran | Alone], *, on_gpu: bool) -> Iterator[Finding]:
    """What is told of them: ratios are of one seed."""
    alone = {one.seed: one for one in found if isinstance(one, Alone)}
    by = {mode: {r.seed: r for r in found if isinstance(r, Ran) and r.mode == mode} for mode in FLOW}
    for mode in (*ASYNC, OTHER):
        both = [(mine, by[SYNC][seed]) for seed, mine in by[mode].items() if seed in by[SYNC]]
        if both:
            ratio = tuple(a.samples_per_second / b.samples_per_second for a, b in both)
            least = None if mode == OTHER else 1.4 if on_gpu else 1.0
            yield Finding(f"{mode}: samples/s, of sync", ratio, least=least)
    for mode in (*ASYNC, OTHER):
        bounded = [(mine, alone[seed]) for seed, mine in by[mode].items() if seed in alone]
        if bounded:
            share = tuple(100 * mine.samples_per_second * one.slower for mine, one in bounded)
            bound = statistics.median(one.bound for _, one in bounded)
            least = 75.0 if on_gpu and mode != OTHER else None
            note = f"which is {bound:.2f}× one side after the other"
            yield Finding(f"{mode}: of the overlap bound", share, "%", least=least, note=note)
    if alone:
        yield Finding("alone: generation of a sample", tuple(1000 * one.generation for one in alone.values()), "ms")
        yield Finding("alone: training on a sample", tuple(1000 * one.training for one in alone.values()), "ms")
    for mode, mine in by.items():
        if mine:
            yield from _of_mode(mode, list(mine.values()))


def _of_mode(mode: str, mine: Sequence[Ran]) -> Iterator[Finding]:
    yield Finding(f"{mode}: samples", tuple(r.samples_per_second for r in mine), "/s")
    yield Finding(f"{mode}: learner idle", tuple(100 * r.learner_idle for r in mine), "%")
    yield Finding(f"{mode}: generator idle", tuple(100 * r.generator_idle for r in mine), "%")
    most = None if mode == SYNC else 2.0  # synchronous training waits for its weights to be published: that it is
    yield Finding(f"{mode}: learner's stall for publications", tuple(100 * r.publishing for r in mine), "%", most=most)
    yield Finding(f"{mode}: reward gained a minute", tuple(r.reward_a_minute for r in mine), "")
    yield Finding(f"{mode}: final reward", tuple(r.reward_last for r in mine), "")
    yield Finding(f"{mode}: staleness", tuple(r.staleness for r in mine), "")


def rewards(found: Sequence[Ran | Alone]) -> str:
    """Whether the final rewards of synchronous and asynchronous runs can be told apart."""
    last = {mode: [r.reward_last for r in found if isinstance(r, Ran) and r.mode == mode] for mode in (SYNC, *ASYNC)}
    if not last[SYNC]:
        return ""
    told = []
    for mode in ASYNC:
        if last[mode]:
            meet = max(min(last[mode]), min(last[SYNC])) <= min(max(last[mode]), max(last[SYNC]))
            told.append(f"those of {mode} {'overlap' if meet else 'do **not** overlap'} with them")
    return f"Final rewards of sync are {min(last[SYNC]):.2f} to {max(last[SYNC]):.2f}; {', '.join(told)}."


def draw(found: Sequence[Ran], path: Path) -> None:
    """The first seed's synchronous run above the last mode's: who waited for whom."""
    first = min(r.seed for r in found)
    shown = [dossier(Path(r.folder)) for mode in (SYNC, ASYNC[1]) for r in found if (r.mode, r.seed) == (mode, first)]
    each = [height([one]) for one in shown]
    size = (11, sum(each))
    figure, axes = plt.subplots(len(shown), 1, figsize=size, height_ratios=each, squeeze=False, layout="constrained")
    for one, where, title in zip(shown, axes[:, 0], ("synchronous", "asynchronous"), strict=False):
        gantt(where, one)
        where.set_title(title, pad=18)
    shortest = min(where.get_xlim()[1] for where in axes[:, 0])
    for where in axes[:, 0]:  # the same number of seconds, so that lengths compare
        where.set_xlim(0.0, shortest)
        for text in where.texts:
            text.set_visible(text.get_position()[0] <= shortest)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def measure(options: argparse.Namespace) -> Leg:
    """All of it."""
    options.steps = options.steps or (40 if ON_GPU else 10)
    runs = Runs(options)
    engines = runs.engines()
    found = runs.all(engines)
    if {SYNC, ASYNC[1]} <= {r.mode for r in found} and options.picture is not None:
        draw([r for r in found if isinstance(r, Ran)], options.picture)
    device = f"{torch.cuda.get_device_name()}, {engines} engine(s)" if ON_GPU else ""
    threads = "" if ON_GPU else f"; on a CPU sync has {CORES} threads a side, the others {options.threads}"
    text = (
        f"{options.steps - options.skip} steps a run after {options.skip} that do not count{threads}. {rewards(found)}"
    )
    return Leg("pipeline", machine(device), tuple(rows(found, on_gpu=ON_GPU)), text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.toml"))
    parser.add_argument("--model", default="", help="directory of a model, if not the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--modes", nargs="+", choices=list(FLOW), default=[ALONE, SYNC, *ASYNC])
    parser.add_argument("--steps", type=int, default=0, help="of a run; 0: 40 on a GPU, 10 on a CPU")
    parser.add_argument("--skip", type=int, default=2, help="steps that do not count")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU: of each side, where both work at a time")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4], help="on a GPU: numbers to choose from")
    parser.add_argument("--flags", default="", help="further ones of the recipe, for every run")
    parser.add_argument("--kept", type=Path, default=Path("runs/pipeline.jsonl"), help="what was seen of earlier runs")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    run("pipeline", measure, parser)


if __name__ == "__main__":
    main()
