"""One step of the production trainer, watched: its gradients are read just before its optimizer takes them.

Invariant: the trainer runs as it is. Refuses to know what its gradients ought to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.figures import StepStats
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer
from tests.consumer.groups import gpt2, policy_model, random_groups

GROUPS = random_groups(seed=11)
TOKENS = sum(len(r.tokens) for g in GROUPS for r in g.rollouts)
VERSION = 4


class Update(NamedTuple):
    """One update as the optimizer met it: all weights, and the gradient, each flat (D,)."""

    weights: Tensor
    gradient: Tensor


Step = tuple[StepStats, list[Update]]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def trained(module: Any, of: LearnerRecipe, groups: Sequence[RolloutGroup] = GROUPS) -> Step:
    """One step of the production trainer, watched."""
    reference = policy_model(gpt2(seed=1), of) if of.objective.needs_reference else None
    trainer, updates = Trainer(policy_model(module, of), of, reference), list[Update]()

    def watch(*_: Any) -> None:
        weights = trainer.model.parameters
        updates.append(Update(flat(weights), flat([w.grad for w in weights if w.grad is not None])))

    trainer.optimizer.register_step_pre_hook(watch)
    return trainer.train(groups, policy_version=VERSION), updates


# One for each surrogate, and whatever needs to look at more than the tokens of a micro-batch.
OBJECTIVES: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in (
        "headrace", "pg", "grpo", "scalerl", "gspo", "gmpo", "sapo", "prime", "topr", "kimi", "oapl", "m2po",
        "reinforce_pp",
    )},
    "normalised": {"normalise_weights": True, "correction": "sequence"},
    "counted after": {"correction_bound": "mask", "denominator": "after", "aggregation": "sequence_mean"},
    "m2po, counted after": {"m2po": 0.1, "denominator": "after", "aggregation": "prompt_mean"},
    "k1 in the reward": {"kl": "k1_reward", "kl_coefficient": 0.2},
    "k3 with its ratio, entropy": {"kl": "k3_ratio", "kl_coefficient": 0.2, "entropy_bonus": 0.05, "veto": 0.2},
    "loglinear": {"proximal": "loglinear", "correction": "prefix"},
    "soft": {"overlong": "soft", "overlong_buffer": 8},
}  # fmt: skip
