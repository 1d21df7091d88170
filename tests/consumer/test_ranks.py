"""Several ranks train as one: real processes under torchrun, FSDP2 over gloo, against one process alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.system.processes import crew

EXACT = 1e-12


class Found(NamedTuple):
    """What rank 0 left."""

    gradients: list[Tensor]
    figures: list[dict[str, Any]]


def trained(world: int, folder: Path, steps: int = 2, **what: Any) -> Found:
    """So many steps by so many ranks."""
    folder.mkdir(parents=True)
    order = json.dumps({"steps": steps, "learner": {}, "objective": {}, **what})
    ranks = crew(world, "tests.consumer.one_rank", [order, str(folder)], folder)
    statuses = [rank.wait(120) for rank in ranks]
    assert statuses == [0] * world, "\n".join((folder / f"rank-{n}.log").read_text()[-3000:] for n in range(world))
    gradients = load_file(folder / "gradients.safetensors")
    return Found(
        [gradients[f"gradient.{n}"] for n in range(len(gradients))],
        json.loads((folder / "figures.json").read_text()),
    )


def off(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "grpo": {"preset": "grpo"},
    "gspo": {"preset": "gspo", "clip_low": 0.2, "clip_high": 0.3},
    "whole-batch": {"preset": "m2po", "normalise_weights": True, "denominator": "after", "kl": "k1_reward",
                    "kl_coefficient": 0.1, "entropy_bonus": 0.01},
}  # fmt: skip


LEARNERS = {
    "bfloat16 moments": {"optimizer": "adamw_bf16"},
    "adapters": {"lora_rank": 4, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_so_it_is_with_rounded_moments_and_with_adapters(name: str, tmp_path: Path) -> None:
    """The third gradient is that after two updates, so it knows the moments as well."""
    what: dict[str, Any] = {"learner": LEARNERS[name], "steps": 3}
    alone, together = trained(1, tmp_path / "1", **what), trained(2, tmp_path / "2", **what)
    assert max(map(off, together.gradients, alone.gradients)) < EXACT


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_gradient_and_figures_are_those_of_one_rank(name: str, tmp_path: Path) -> None:
    """Two minibatches of micro-batches of 40 tokens; with 4 ranks some have nothing of their own to do."""
    what: dict[str, Any] = {"objective": OBJECTIVES[name], "learner": {"minibatches_per_batch": 2}}
    alone = trained(1, tmp_path / "1", **what)
    for world in (2, 4) if name == "default" else (2,):
        together = trained(world, tmp_path / str(world), **what)
        assert len(together.gradients) == len(alone.gradients) == 4
        assert max(map(off, together.gradients, alone.gradients)) < EXACT
        for one, other in zip(together.figures, alone.figures, strict=True):
            for figure, value in other.items():
                if figure in ("train_seconds", "phase_seconds"):
                    continue
                assert one[figure] == (pytest.approx(value, rel=1e-9, abs=1e-12) if value is not None else None), figure


def test_a_checkpoint_of_some_ranks_is_resumed_by_others(tmp_path: Path) -> None:
    """Saved by 2; taken up by 1 and by 4, and by 2 again from one alone."""
    whole = trained(1, tmp_path / "whole", steps=4)
    trained(2, tmp_path / "two", steps=2, save=str(tmp_path / "by-two"))
    trained(1, tmp_path / "one", steps=2, save=str(tmp_path / "by-one"))
    by_two, by_one = tmp_path / "by-two" / "step-00000002", tmp_path / "by-one" / "step-00000002"
    assert len(list(by_two.glob("*.safetensors"))) == 2, "each rank wrote its part"
    assert not [path for path in by_two.iterdir() if path.suffix not in (".safetensors", ".json")]
    for world, source in ((1, by_two), (4, by_two), (2, by_one)):
        resumed = trained(world, tmp_path / f"{world}-of-{source.parent.name}", steps=2, resume=str(source))
        assert max(map(off, resumed.gradients, whole.gradients[2:])) < EXACT, "weights and moments are those of before"
