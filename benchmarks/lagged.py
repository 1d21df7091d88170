"""One training run at a constant lag: each batch was sampled by the policy of exactly so many versions ago.

The learner's step is the production one (`consumer.trainer.Trainer` on a `PolicyModel`); the model and its task are
toys. Invariant: a run is a function of its `Run`, bit for bit on one machine. Refuses to know Redis, arrival and chance
in the lag: what a pipeline adds to staleness is not seen here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import torch

from benchmarks.toy import LONGEST, Toy, addition, imitator, sampled
from consumer.figures import StepStats
from consumer.model import PolicyModel
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer

GROUPS, SIZE = 8, 8  # a batch
IMITATION = 500  # steps, before which nothing is measured
LOOK_EVERY = 5  # steps between two exact evaluations


@dataclass(frozen=True)
class Run:
    """What a run depends on. `staleness` in versions; a step makes a version, in `minibatches` updates."""

    preset: str
    staleness: int
    seed: int
    learning_rate: float
    steps: int
    minibatches: int = 1
    imitation: int = IMITATION

    @property
    def recipe(self) -> LearnerRecipe:
        """As a learner would read it; whatever is not named here is the default."""
        return LearnerRecipe.model_validate(
            {
                "run": {"name": "toy", "model": "toy", "steps": self.steps, "max_staleness": self.staleness},
                "sampling": {"group_size": SIZE, "max_tokens": LONGEST},
                "learner": {
                    "groups_per_step": GROUPS,
                    "pipeline_depth": self.staleness,
                    "learning_rate": self.learning_rate,
                    "minibatches_per_batch": self.minibatches,
                    "layout": "padded",
                    "device": "cpu",
                },
                "objective": {"preset": self.preset},
            }
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a run. Rewards are exact expectations under the policy; the other figures are means over the steps
    whose batch was exactly as stale as asked for, the first `staleness` steps are not."""

    start: float
    final: float
    area: float  # mean of the reward over training
    curve: list[float]  # every LOOK_EVERY steps
    ess: float
    ess_least: float
    sequence_ess: float
    clipped: float
    truncated: float
    masked: float
    skipped: int  # updates that were thrown away as not finite
    staleness_seen: int


def train(run: Run) -> Outcome:
    """The whole run."""
    recipe, problems = run.recipe, addition()
    trainer = Trainer(policy(run), recipe, policy(run, frozen=True) if recipe.objective.needs_reference else None)
    learner: Toy = trainer.model.module
    generator, chance = Toy(), torch.Generator().manual_seed(run.seed)
    published = deque([trainer.snapshot()], maxlen=run.staleness + 1)  # the oldest is what generators hold
    start, curve, seen = learner.expected_reward(problems), list[float](), list[StepStats]()
    for version in range(run.steps):
        generator.load_state_dict(published[0])
        held = max(0, version - run.staleness)
        stats = trainer.train(sampled(generator, problems, held, GROUPS, SIZE, chance), version)
        published.append(trainer.snapshot())
        if version >= run.staleness:
            seen.append(stats)
        if (version + 1) % LOOK_EVERY == 0:
            curve.append(learner.expected_reward(problems))
    return _outcome(start, learner.expected_reward(problems), curve, seen)


def _outcome(start: float, final: float, curve: list[float], seen: list[StepStats]) -> Outcome:
    def mean(name: str) -> float:
        return float(sum(getattr(stats, name) for stats in seen) / len(seen))

    return Outcome(
        start=start,
        final=final,
        area=sum(curve) / len(curve),
        curve=curve,
        ess=mean("ess"),
        ess_least=min(stats.ess for stats in seen),
        sequence_ess=mean("sequence_ess"),
        clipped=mean("clip_fraction"),
        truncated=mean("truncation_fraction"),
        masked=mean("mask_fraction"),
        skipped=sum(stats.skipped for stats in seen),
        staleness_seen=max(stats.staleness_max for stats in seen),
    )


def policy(run: Run, *, frozen: bool = False) -> PolicyModel:
    """What a run begins with."""
    toy = Toy()
    toy.load_state_dict(_imitation(run.seed, run.imitation).state_dict())
    toy.requires_grad_(not frozen)
    return PolicyModel(toy, run.recipe.learner, torch.float32, torch.device("cpu"))


@lru_cache(maxsize=2)
def _imitation(seed: int, steps: int) -> Toy:
    """Runs that differ in their objective alone begin with the same network."""
    return imitator(addition(), seed, steps)
