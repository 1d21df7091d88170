"""`make curriculum`: how many samples each curriculum needs to a given reward, on a toy of which half is out of reach.

The toy is that of `benchmarks.toy`; of its problems a random half has a key that no completion meets, as the hard part
of a data set has for a small model, and the other half is learnt and then solved. Curriculum and learner's step are the
production ones. As in the pipeline a group without contrast is used up and replaced, so a batch costs as many samples
as it takes to find its groups. Rewards are exact expectations over the problems that can be solved. Invariant: all
seeds are in the figures, and nothing but the curriculum differs between two runs of a seed. Refuses to know staleness.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.lagged import GROUPS, SIZE, Run, policy
from benchmarks.toy import Problems, Toy, addition, answered, right
from broker.card import PartCard
from broker.schema import RolloutGroup
from consumer.choice import Course
from consumer.curriculum import Curriculum
from consumer.trainer import Trainer

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "curriculum.png"
COURSES = {"uniform": Course(), "skip": Course("skip"), "target": Course("target")}
RATE, STEPS, GOAL, SEEDS = 4e-3, 400, 0.8, tuple(range(1, 9))
INK, COLOURS = "#222222", {"uniform": "#777777", "skip": "#0072b2", "target": "#009e73"}


@dataclass(frozen=True)
class Curve:
    """One run, step by step: samples taken until then (K,), and the expected reward of solvable problems (K,)."""

    course: str
    seed: int
    samples: list[int]
    reward: list[float]

    @property
    def to_goal(self) -> int | None:
        """Samples until the goal was first reached."""
        return next((n for n, reward in zip(self.samples, self.reward, strict=True) if reward >= GOAL), None)


class World:
    """Half of the problems can be solved."""

    def __init__(self, seed: int) -> None:
        self.problems = addition()
        count = len(self.problems.prompts)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 + seed))
        self.solvable = torch.zeros(count, dtype=torch.bool)
        self.solvable[order[: count // 2]] = True

    def judge(self, tokens: Tensor, which: Tensor, problems: Problems) -> Tensor:
        """1 for a right answer to a problem that has one."""
        return right(tokens, which, problems) * self.solvable[which]

    def reward(self, toy: Toy) -> float:
        """The expected reward of a problem that can be solved."""
        return toy.expected_reward(Problems(*(column[self.solvable] for column in self.problems)))


def trained(course: str, seed: int, steps: int = STEPS, imitation: int = 500) -> Curve:
    """A whole run, until it is well past the goal."""
    run, world = Run("headrace", 0, seed, RATE, steps, imitation=imitation), World(seed)
    trainer, chance = Trainer(policy(run), run.recipe), torch.Generator().manual_seed(seed)
    curriculum = Curriculum(seed, (PartCard("all", len(world.problems.prompts)),), COURSES[course])
    toy: Toy = trainer.model.module
    curve, used = Curve(course, seed, [0], [world.reward(toy)]), 0
    for version in range(steps):
        batch, samples = _batch(curriculum, partial(answered, toy, world.problems, version), world, chance)
        used += samples
        trainer.train(batch, version)
        curve.samples.append(used)
        curve.reward.append(world.reward(toy))
        if curve.reward[-1] > (1 + GOAL) / 2:
            break
    return curve


def _batch(
    curriculum: Curriculum, answer: partial[list[RolloutGroup]], world: World, chance: torch.Generator
) -> tuple[list[RolloutGroup], int]:
    """Groups with contrast, as many as a batch has, and the samples they and the others took."""
    batch, samples = list[RolloutGroup](), 0
    while len(batch) < GROUPS:
        draw = curriculum.next(GROUPS - len(batch), [group.problem for group in batch])
        curriculum.drew(draw)
        groups = answer(torch.tensor(draw.problems), SIZE, chance, world.judge)
        seen = [o for g in groups for o in curriculum.observation(g.problem, sum(r.solved for r in g.rollouts), SIZE)]
        curriculum.drew(curriculum.next(0, (), seen))
        samples += SIZE * len(groups)
        batch += [group for group in groups if not group.degenerate]
    return batch, samples


def table(curves: Sequence[Curve]) -> str:
    """Samples to the goal, Markdown; a run that never reached it counts with all its samples, and is counted."""
    rows = [f"| curriculum | samples to {GOAL:g} | against uniform | seeds that took fewer |", "|---|---|---|---|"]
    spent = {(c.course, c.seed): c.to_goal or c.samples[-1] for c in curves}
    seeds = sorted({c.seed for c in curves})
    for course in dict.fromkeys(c.course for c in curves):
        mine = [spent[course, seed] for seed in seeds]
        ratios = [spent[course, seed] / spent["uniform", seed] for seed in seeds]
        missed = sum(c.to_goal is None for c in curves if c.course == course)
        fewer = sum(ratio < 1 for ratio in ratios)
        rows.append(
            f"| {course} | {fmean(mine):,.0f} ± {_error(mine):,.0f}{f' ({missed} never)' if missed else ''} | "
            f"{fmean(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {fewer} of {len(seeds)} |"
        )
    return "\n".join(rows)


def _error(values: Sequence[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def picture(curves: Sequence[Curve]) -> bytes:
    """Reward against samples, a thin line for every seed and a thick one for their mean, PNG."""
    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for course in dict.fromkeys(c.course for c in curves):
        mine = [c for c in curves if c.course == course]
        for curve in mine:
            axes.plot(curve.samples, curve.reward, color=COLOURS[course], linewidth=0.8, alpha=0.3)
        grid = np.linspace(0, min(c.samples[-1] for c in mine), 60)  # as far as all seeds go
        mean = np.mean([np.interp(grid, c.samples, c.reward) for c in mine], 0)
        axes.plot(grid, mean, color=COLOURS[course], linewidth=2.6, label=course)
    axes.axhline(GOAL, color=INK, linewidth=0.8, linestyle=":")
    axes.set_title("Samples are spent where there is something to learn", loc="left", color=INK, fontsize=13)
    axes.set_xlabel("samples", color=INK)
    axes.set_ylabel("expected reward of solvable problems", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make curriculum", description="samples to a reward, by curriculum")
    parser.add_argument("--quick", action="store_true", help="see in seconds that it works; nothing is written")
    quick = parser.parse_args().quick
    jobs = [(course, seed) for seed in (SEEDS[:1] if quick else SEEDS) for course in COURSES]
    torch.set_num_threads(1)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(trained, *job, *((20, 100) if quick else ())) for job in jobs]
        curves = [future.result() for future in futures]
    print(table(curves))
    if not quick:
        PICTURE.write_bytes(picture(curves))
        (HERE / "curriculum.json").write_text(json.dumps([asdict(curve) for curve in curves]))
        print(f"\n{PICTURE.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
