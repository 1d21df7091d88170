"""The learner's sections: what cannot work is refused on construction, in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker.errors import Refused
from broker.loading import load
from consumer.settings import LearnerRecipe
from tests.consumer.groups import recipe

ROOT = Path(__file__).parents[2]
TEXT = """
[run]
name = "test"
model = "none"
steps = 3
[sampling]
max_tokens = 16
[learner]
[objective]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(TEXT)
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--learner.pipeline_depth 9", "learner.pipeline_depth = 9 is above run.max_staleness = 8"),
        ("--run.max_staleness 1", "learner.pipeline_depth = 2 is above run.max_staleness = 1"),
        ("--learner.publish_every 4", "publish_every = 4 needs pipeline_depth >= 3"),
        ("--run.max_staleness 0 --learner.pipeline_depth 0 --learner.publish_every 2", "publish_every"),
        ("--sampling.group_size 1", "group_size"),
        ("--learner.groups_per_step 0", "learner.groups_per_step"),
        ("--learner.order fastest", "learner.order"),
        ("--learner.publish_every 0", "learner.publish_every"),
        ("--learner.learning_rate 0", "learner.learning_rate"),
        ("--learner.learning_rate nan", "learner.learning_rate"),
        ("--learner.max_grad_norm 0", "learner.max_grad_norm"),
        ("--learner.minibatches_per_batch 0", "learner.minibatches_per_batch"),
        ("--learner.tokens_per_micro_batch 0", "learner.tokens_per_micro_batch"),
        ("--learner.layout ragged", "learner.layout"),
        ("--learner.device tpu", "learner.device"),
        ("--learner.autocast float8", "learner.autocast"),
        ("--learner.checkpoint_every 0", "learner.checkpoint_every"),
        ("--learner.keep_checkpoints 0", "learner.keep_checkpoints"),
        ("--learner.lr 1e-5", "unknown key learner.lr"),
        ("--objective.clip_low 1", "objective.clip_low"),
        ("--objective.clip_high -0.1", "objective.clip_high"),
        ("--objective.truncation 0", "objective.truncation"),
        ("--objective.kl 0.1", "objective.kl: Input should be 'none'"),
        ("--objective.kl_coefficient 0.1", "kl_coefficient = 0.1 has no effect with kl = 'none'"),
        ("--objective.clip 0.1", "unknown key objective.clip"),
    ],
)
def test_what_cannot_work_is_refused_by_the_name_of_its_key(path: Path, flags: str, named: str) -> None:
    with pytest.raises(Refused) as refused:
        load(LearnerRecipe, path, flags.split(), {})
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--run.max_staleness 0 --learner.pipeline_depth 0",
        "--learner.pipeline_depth 0 --learner.publish_every 1",
        "--learner.publish_every 3",
        "--learner.pipeline_depth 8",
        "--objective.clip_low 0 --objective.clip_high 0 --objective.truncation 0.5",
    ],
)
def test_the_limits_themselves_are_allowed(path: Path, flags: str) -> None:
    load(LearnerRecipe, path, flags.split(), {})


def test_the_defaults_are_those_of_the_design() -> None:
    of = recipe()
    learner, objective = of.learner, of.objective
    assert (of.run.max_staleness, learner.pipeline_depth, learner.order, learner.publish_every) == (8, 2, "ready", 1)
    assert (objective.clip_low, objective.clip_high, objective.truncation) == (0.2, 0.28, 2.0)
    assert learner.minibatches_per_batch == 1
    assert type(learner)().max_grad_norm == 1.0


@pytest.mark.parametrize(("depth", "groups", "capacity"), [(0, 8, 8), (2, 8, 24), (3, 5, 20)])
def test_capacity_is_one_batch_in_training_and_depth_batches_behind_it(depth: int, groups: int, capacity: int) -> None:
    assert recipe({"pipeline_depth": depth, "groups_per_step": groups}).capacity == capacity


def test_settings_that_exist_do_not_change(path: Path) -> None:
    of: Any = recipe()
    with pytest.raises(ValidationError):
        of.learner.groups_per_step = 1


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_in_the_house_is_one_that_the_learner_accepts(file: Path) -> None:
    load(LearnerRecipe, file, [], {})
