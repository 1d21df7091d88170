"""How much of a policy differs from one version to the next, by learning rate: numbers that change, bytes that travel.

Invariant: versions are those of real training, on groups that the version before sampled; each difference, laid onto
the version before, was seen to give the next one to the bit. Refuses to know how versions travel.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from broker import delta
from broker.loading import load
from broker.schema import RolloutGroup, Ticket
from broker.shipper import DELTA_CHUNK_BYTES
from consumer.model import PolicyModel
from consumer.trainer import Trainer
from deploy.recipe import Recipe
from producer.rollout import assemble
from producer.tasks import Problem
from producer.tasks.addition import score
from producer.tasks.registry import make_task
from producer.tokens import Tokens
from producer.transformers_engine import TransformersEngine

RECIPE = Path("recipes/demo.toml")
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Change:
    """From one version to the next: shares of its numbers that differ, and of its bytes that travel; the reward."""

    numbers: float
    bytes: float
    reward: float


async def changes(model: Path, rate: float, steps: int, groups: int = 4) -> AsyncIterator[Change]:
    """Of `model`, trained for `steps` at the learning rate `rate`, else as recipes/demo.toml trains it."""
    recipe = _recipe(model, rate)
    trainer = Trainer(PolicyModel.load(model, recipe, recipe.learner), recipe)
    engine = TransformersEngine(str(model), recipe)
    task, tokens = make_task(recipe.task), Tokens(model, recipe.task)
    chance = np.random.default_rng(recipe.run.seed)
    await engine.start()
    with tempfile.TemporaryDirectory() as scratch:
        old = _written(trainer, Path(scratch) / "v0")
        for version in range(steps):
            await engine.refresh(old, version)
            batch = list[RolloutGroup]()
            while len(batch) < groups:
                problem = task.train[chance.integers(len(task.train))]
                group = await _group(engine, tokens, problem, int(chance.integers(2**31)))
                batch += [] if group.degenerate else [group]
            trainer.train(batch, version)
            new = _written(trainer, Path(scratch) / f"v{version + 1}")
            yield _change(old / WEIGHTS, new / WEIGHTS, batch)
            (old / WEIGHTS).unlink()
            old = new
    await engine.stop()


def _recipe(model: Path, rate: float) -> Recipe:
    flags = {
        "run.model": model,
        "policy.dtype": "bfloat16",
        "generator.engine": "transformers",
        "generator.threads": 2,
        "learner.learning_rate": rate,
        "learner.threads": 2,
    }
    return load(Recipe, RECIPE, [part for name, value in flags.items() for part in (f"--{name}", str(value))], {})


async def _group(engine: TransformersEngine, tokens: Tokens, problem: Problem, seed: int) -> RolloutGroup:
    prompt = tokens.prompt_ids(problem)
    completions = await engine.sample(prompt, seed, "")
    verdicts = [score(tokens.decode(each.tokens), problem) for each in completions]
    ticket = Ticket("benchmark", 0, seed, engine.policy_version)
    return assemble(ticket, prompt, completions, verdicts, generator="benchmark", sample_seconds=0.0)


def _written(trainer: Trainer, folder: Path) -> Path:
    trainer.model.write(folder, trainer.snapshot())
    return folder


def _change(old: Path, new: Path, batch: Sequence[RolloutGroup]) -> Change:
    before, after = old.read_bytes(), new.read_bytes()
    travels = 0
    for start in range(0, len(before), DELTA_CHUNK_BYTES):
        one, other = (whole[start : start + DELTA_CHUNK_BYTES] for whole in (before, after))
        difference = delta.between(one, other)
        laid = bytearray(one)
        delta.lay(difference, laid)
        assert laid == other
        travels += len(difference)
    numbers: Any = np.frombuffer(before, "<u2") != np.frombuffer(after, "<u2")
    reward = float(np.mean([group.rewards.mean() for group in batch]))
    return Change(float(numbers.mean()), travels / len(after), reward)
