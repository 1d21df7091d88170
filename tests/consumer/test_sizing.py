"""What a run needs, said before it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from consumer.recipe import ProcessRecipe
from consumer.sizing import most_slots
from tests.system.pipeline import ROOT


def said(*flags: str) -> str:
    command = [sys.executable, "-m", "consumer.sizing", "recipes/demo.toml", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_weights_that_go_through_redis_are_part_of_it(tmp_path: Path) -> None:
    lines = said().splitlines()
    assert lines[0].split() == ["tickets", "in", "play,", "at", "most", "12"]
    assert not any("weights" in line for line in lines)
    assert "5 versions of a model that is not here" in said("--policy.backend", "redis", "--run.model", str(tmp_path))


def test_capacity_feeds_half_as_many_slots_as_there_are_tickets_beyond_a_batch() -> None:
    plain = {
        "run": {"name": "r", "model": "m", "steps": 1, "max_staleness": 16},
        "sampling": {"max_tokens": 1},
        "learner": {"groups_per_step": 32, "pipeline_depth": 4},
    }
    of = ProcessRecipe.model_validate(plain)
    assert (of.capacity, most_slots(of)) == (160, 64)
