"""Asynchronous against synchronous: whole runs with equal hardware and seeds, as ratios, and a picture of who waited.

Invariant: every mode runs the same recipe, seeds and number of steps, and has the whole machine in the best way it can:
on a CPU the synchronous one computes with all cores on whichever side is at work, the others share them. Refuses to
know how a run works.

A run that was made before, with the same flags, is not made again: `--kept` names the file with what was seen of them,
so that the parts of this can be run one by one (`--modes sync --seeds 2`).

The bound: sides that never wait for each other take max(t_gen, t_train) a sample, sides that always do the sum; both
are seen in the synchronous run, in which each works alone: its learner's wait is generation, the rest training.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from benchmarks.findings import Finding, Leg, machine, run
from benchmarks.pipeline_run import Ran, dossier, keep, kept, play
from monitoring.gantt import gantt, height

SYNC, ALONE, ASYNC = "sync", "sync, a core a side", ("async, bound 1", "async, bound 4")
FLOW = {
    SYNC: "--run.max_staleness 0 --learner.pipeline_depth 0",
    ALONE: "--run.max_staleness 0 --learner.pipeline_depth 0",
    ASYNC[0]: "--run.max_staleness 1 --learner.pipeline_depth 1",
    ASYNC[1]: "--run.max_staleness 4 --learner.pipeline_depth 2",
}
ALIKE = """--learner.eval_problems 0 --learner.stop_when_solved false --learner.max_degenerate_in_a_row 100000
    --learner.checkpoint_every 1000 --broker.audit_entries 20000"""
ON_GPU = """--policy.dtype bfloat16 --generator.dtype bfloat16 --generator.enforce_eager false --generator.threads 0
    --learner.threads 0 --learner.groups_per_step 64 --sampling.max_tokens 128 --generator.slots 64
    --generator.kv_cache_gib 4 --learner.learning_rate 2e-5"""
QUICK = "--objective.degenerate keep"
PICTURE = Path("docs/pipeline-gantt.png")


def flags_of(mode: str, options: argparse.Namespace) -> list[str]:
    """Of the launcher."""
    if torch.cuda.is_available():
        hardware = f"{ON_GPU} --generator.count {options.engines}"
    else:
        cores = len(os.sched_getaffinity(0)) if mode == SYNC else 1
        hardware = f"--generator.threads {cores} --learner.threads {cores}"
    model = f"--run.model {options.model}" if options.model else ""
    quick = QUICK if options.quick else ""
    return shlex.split(f"{ALIKE} {FLOW[mode]} --run.steps {options.steps} {hardware} {model} {quick} {options.flags}")


def runs(options: argparse.Namespace) -> list[Ran]:
    """Mode after mode within a seed, so that slow hours are everybody's."""
    found, recipe = kept(options.kept), Path("recipes/tiny.toml") if options.quick else options.recipe
    for seed in options.seeds:
        for mode in options.modes:
            flags = flags_of(mode, options)
            if not any((r.mode, r.seed, r.flags) == (mode, seed, " ".join(flags)) for r in found):
                ran = play(recipe, mode.replace(", ", "-").replace(" ", "-"), seed, flags, options.skip)
                found.append(Ran(**{**vars(ran), "mode": mode}))
                keep(options.kept, found[-1])
    return [r for r in found if r.seed in options.seeds and r.flags == " ".join(flags_of(r.mode, options))]


def rows(found: Sequence[Ran], *, on_gpu: bool) -> list[Finding]:
    """What is told of them: ratios are of one seed."""
    by = {mode: {r.seed: r for r in found if r.mode == mode} for mode in FLOW}
    out = list[Finding]()
    for mode, mine in by.items():
        if mine:
            out += _of_mode(mode, list(mine.values()))
    for mode in ASYNC:
        both = [(by[mode][seed], by[SYNC][seed]) for seed in by[mode] if seed in by[SYNC]]
        if both:
            ratio = tuple(a.samples_per_second / b.samples_per_second for a, b in both)
            out.append(Finding(f"{mode}: samples/s, of sync", ratio, least=1.4 if on_gpu else 1.0))
        alone = SYNC if on_gpu else ALONE
        bounded = [(by[mode][seed], by[alone][seed]) for seed in by[mode] if seed in by[alone]]
        if bounded:
            share = tuple(a.samples_per_second * _slower(b) for a, b in bounded)
            bound = statistics.median(map(_bound, (b for _, b in bounded)))
            note = f"the bound is {bound:.2f}× {alone}"
            out.append(Finding(f"{mode}: of the overlap bound", share, least=0.75 if on_gpu else None, note=note))
    return out


def _bound(alone: Ran) -> float:
    """How much faster than this run, in which each side works alone, one is that never waits."""
    return (alone.wait_seconds + alone.train_seconds) / max(alone.wait_seconds, alone.train_seconds)


def _slower(alone: Ran) -> float:
    """Seconds a sample of the slower side, from a run in which each side works alone."""
    return max(alone.wait_seconds, alone.train_seconds) / alone.samples


def _of_mode(mode: str, mine: Sequence[Ran]) -> list[Finding]:
    told = {
        "learner idle": ("%", [100 * r.learner_idle for r in mine]),
        "generator idle": ("%", [100 * r.generator_idle for r in mine]),
        "reward gained a minute": ("", [r.reward_a_minute for r in mine]),
        "final reward": ("", [r.reward_last for r in mine]),
        "staleness": ("", [r.staleness for r in mine]),
    }
    return [Finding(f"{mode}: {what}", tuple(values), unit) for what, (unit, values) in told.items()]  # type: ignore[arg-type]


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
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def measure(options: argparse.Namespace) -> Leg:
    """All of it."""
    found = runs(options)
    if {SYNC, ASYNC[1]} <= {r.mode for r in found} and options.picture is not None:
        draw(found, options.picture)
    on_gpu = torch.cuda.is_available()
    device = f"{torch.cuda.get_device_name()}, {options.engines} engine(s)" if on_gpu else ""
    text = f"{options.steps - options.skip} steps a run, after {options.skip} that do not count."
    return Leg("pipeline", machine(device), tuple(rows(found, on_gpu=on_gpu)), text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.toml"))
    parser.add_argument("--model", default="", help="directory of a model, if not the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--modes", nargs="+", choices=list(FLOW), default=list(FLOW))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--skip", type=int, default=2, help="steps that do not count")
    parser.add_argument("--engines", type=int, default=2, help="generators on a GPU")
    parser.add_argument("--flags", default="", help="further ones of the recipe, for every run")
    parser.add_argument("--kept", type=Path, default=Path("runs/pipeline.jsonl"), help="what was seen of earlier runs")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    run("pipeline", measure, parser)


if __name__ == "__main__":
    main()
