"""What a rank does in the tests of several: it trains and leaves what it found in a folder.

Refuses to judge: rank 0 writes, the test that started it compares.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from consumer import checkpoint
from consumer.crew import LeadingTrainer, dismiss, follow
from consumer.ranks import Ranks
from consumer.sharding import whole
from consumer.trainer import Trainer
from tests.consumer.groups import gpt2, policy_model, random_groups, recipe

GROUPS = random_groups(seed=11, count=6)


def made(kind: type[Trainer], ranks: Ranks, learner: dict[str, Any], objective: dict[str, Any]) -> Trainer:
    """A trainer of the float64 GPT-2."""
    of = recipe({"learning_rate": 1e-3, "tokens_per_micro_batch": 40, **learner}, objective)
    models = [policy_model(gpt2(seed), of) for seed in (0, 1)]
    if ranks.mesh is not None:
        models = [model.shard(ranks.mesh) for model in models]
    return kind(models[0], of, models[1].frozen() if of.objective.needs_reference else None, ranks)


def gradients(trainer: Trainer) -> list[Tensor]:
    """The gradient of every update from now on, whole and flat (D,), as the optimizer meets it."""
    seen: list[Tensor] = []

    def watch(*_: Any) -> None:
        seen.append(torch.cat([whole(p.grad).reshape(-1) for p in trainer.model.parameters if p.grad is not None]))

    trainer.optimizer.register_step_pre_hook(watch)
    return seen


def steps(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    """Train `count` steps; their figures."""
    return [asdict(trainer.train(GROUPS[n % 2 :], policy_version=4)) for n in range(count)]


def main() -> None:
    """Entry point."""
    torch.set_num_threads(1)
    what, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    ranks = Ranks.join("cpu")
    trainer = made(LeadingTrainer if ranks.leads else Trainer, ranks, what["learner"], what["objective"])
    seen = gradients(trainer)
    if not ranks.leads:
        follow(trainer)
    else:
        if what.get("resume"):
            trainer.load(Path(what["resume"]))
        found = steps(trainer, what["steps"])
        if what.get("save"):
            checkpoint.write(Path(what["save"]), trainer.updates, trainer.state(), {}, keep=9)
        save_file({f"gradient.{n}": g for n, g in enumerate(seen)}, folder / "gradients.safetensors")
        (folder / "figures.json").write_text(json.dumps(found))
        dismiss(ranks, for_good=True)
    ranks.leave()


if __name__ == "__main__":
    main()
