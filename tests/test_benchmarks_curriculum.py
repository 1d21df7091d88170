"""The toy that curricula are compared on: half of it can be solved, a batch has contrast, samples are counted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from benchmarks.curriculum import COURSES, GOAL, Curve, World, _batch, picture, table, trained
from benchmarks.lagged import GROUPS, SIZE
from benchmarks.toy import Toy, answered, imitator
from broker.card import PartCard
from consumer.curriculum import Curriculum


def test_only_half_of_the_problems_pay_and_only_they_are_looked_at() -> None:
    world = World(1)
    which = torch.arange(len(world.problems.prompts))
    paid = world.judge(world.problems.answers, which, world.problems)
    assert paid.sum() == world.solvable.sum() == len(which) // 2
    toy = imitator(world.problems, 1, 5)
    assert world.reward(toy) != toy.expected_reward(world.problems)


def test_a_batch_has_contrast_and_costs_every_sample_it_took_to_find() -> None:
    world, seen = World(1), list[int]()
    curriculum = Curriculum(1, (PartCard("all", len(world.problems.prompts)),), COURSES["target"])
    toy: Toy = imitator(world.problems, 1, 20)

    def answer(drawn: torch.Tensor, *rest: object) -> object:
        seen.extend(drawn.tolist())
        return answered(toy, world.problems, 0, drawn, *rest)  # type: ignore[arg-type]

    batch, samples = _batch(curriculum, partial(answer), world, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    assert len(batch) == GROUPS
    assert not any(group.degenerate for group in batch)
    assert samples == SIZE * len(seen) > SIZE * GROUPS
    assert sum(curriculum.memory.now.states.values()) == len(set(seen))


def test_a_run_gives_a_line_a_row_and_a_picture() -> None:
    curves = [trained(course, 1, steps=2, imitation=20) for course in COURSES]
    assert all(len(curve.samples) == len(curve.reward) == 3 for curve in curves)
    assert len({curve.reward[0] for curve in curves}) == 1, "they begin alike"
    assert picture(curves).startswith(b"\x89PNG")
    assert "(1 never)" in table(curves)


def test_the_goal_is_reached_where_it_is_first_reached() -> None:
    curve = Curve("uniform", 1, [0, 64, 128, 192], [0.1, GOAL, 0.2, 0.9])
    assert curve.to_goal == 64
    assert replace(curve, reward=[0.1] * 4).to_goal is None
    other = replace(curve, course="target", samples=[0, 32, 64, 96])
    assert "| target | 32 ± 0 | 0.50 (0.50–0.50) | 1 of 1 |" in table([curve, other])
