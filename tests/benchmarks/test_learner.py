"""The learner's leg, as small as it can be: both sides train alike, and what is counted is what was computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.findings import Leg
from benchmarks.learner_sides import PADDED, SHARED, SORTED, sides, tiny
from benchmarks.lengths import GROUP_SIZE, LENGTHS, groups_of, real_tokens
from benchmarks.padded import batches_of, padding
from consumer.effort import Flops

SHAPE = tiny(rows=8, tokens=100, groups=3)
GROUPS = groups_of(LENGTHS["short"](), 1, SHAPE.groups, SHAPE.vocabulary)


def test_every_side_starts_alike_and_makes_the_same_step_of_the_same_groups() -> None:
    found = sides(SHAPE, torch.device("cpu"))
    assert set(found) == set(SHAPE.sides)
    for _ in range(2):  # the second loss is that of updated weights
        losses = {name: side.step(GROUPS) for name, side in found.items()}
        assert list(losses.values()) == pytest.approx([losses[PADDED]] * len(losses), rel=1e-4, abs=1e-7)


def test_real_tokens_are_those_of_all_sequences_and_the_rest_is_padding() -> None:
    lengths = [len(g.prompt) + len(r.tokens) for g in GROUPS for r in g.rollouts]
    assert real_tokens(GROUPS) == sum(lengths)
    as_they_come, longest_first = batches_of(GROUPS, 5), batches_of(GROUPS, 5, longest_first=True)
    widest = [max(lengths[at : at + 5]) * len(lengths[at : at + 5]) for at in range(0, len(lengths), 5)]
    assert padding(as_they_come) == pytest.approx(1 - sum(lengths) / sum(widest))
    assert padding(longest_first) < padding(as_they_come)
    assert sorted(map(id, (r[1] for b in as_they_come for r in b))) == sorted(
        map(id, (r[1] for b in longest_first for r in b))
    )


def test_the_padded_loop_pays_for_each_prompt_with_each_completion_and_the_learner_once_a_group() -> None:
    found = sides(SHAPE, torch.device("cpu"))
    for side in found.values():
        side.step(GROUPS)
    each = Flops.of(SHAPE.make()).training
    once = sum(len(g.prompt) + sum(len(r.tokens) for r in g.rollouts) for g in GROUPS)
    assert found[PADDED].flops() == found[SORTED].flops() == each * real_tokens(GROUPS)
    assert each * once <= found[SHARED].flops() < each * real_tokens(GROUPS)


def test_lengths_are_those_of_the_histogram() -> None:
    document = json.loads(Path("benchmarks/gsm8k_lengths.json").read_text())
    cells = {(prompt, answer) for prompt, answer, count in document["counts"] if count}
    draw, rng, cell = LENGTHS["GSM8K"](), np.random.default_rng(3), document["cell"]
    for _ in range(50):
        prompt, answers = draw(rng)
        assert len(answers) == GROUP_SIZE
        assert {(prompt // cell, answer // cell) for answer in answers} <= cells


def test_the_leg_measures_every_side(tmp_path: Path) -> None:
    kept = tmp_path / "leg.json"
    command = [sys.executable, "-m", "benchmarks.learner", "--quick", "--json", str(kept)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = {row.what: row for row in Leg.read(kept).findings}
    for side in SHAPE.sides:
        assert told[f"tiny, short, {side}: real tokens"].median > 0
        if side != PADDED:
            assert told[f"tiny, short, {side}: loss, off by"].met
    shares = [row.median for what, row in told.items() if "share of the step in" in what]
    assert sum(shares) == pytest.approx(100.0)
    assert 0 <= told["tiny, shared prompts: stall of a publication, share of the step"].median < 100
