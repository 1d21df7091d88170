"""Two and four ranks against one: how far their gradients are from each other, in float64, on this machine.

Invariant: every number of ranks trains the same model on the same groups. Refuses to measure speed: ranks that share
two cores say nothing of ranks that have a GPU each.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.system.processes import crew

STEPS = 3
LEARNER = {"minibatches_per_batch": 2}
OBJECTIVES = ("headrace", "grpo", "gspo", "m2po", "cispo")


def gradients(world: int, preset: str, folder: Path) -> list[Tensor]:
    """Of every update, whole and flat (D,)."""
    folder.mkdir(parents=True)
    order = json.dumps({"steps": STEPS, "learner": LEARNER, "objective": {"preset": preset}})
    ranks = crew(world, "tests.consumer.one_rank", [order, str(folder)], folder)
    if any(rank.wait(300) for rank in ranks):
        raise SystemExit((folder / "rank-0.log").read_text()[-3000:])
    found = load_file(folder / "gradients.safetensors")
    return [found[f"gradient.{n}"] for n in range(len(found))]


def main() -> None:
    """Print the table."""
    print("| preset | updates | 2 ranks against 1 | 4 ranks against 1 |\n|---|---|---|---|")
    for preset in OBJECTIVES:
        with tempfile.TemporaryDirectory() as root:
            alone = gradients(1, preset, Path(root) / "1")
            off = [_off(gradients(world, preset, Path(root) / str(world)), alone) for world in (2, 4)]
        print(f"| `{preset}` | {len(alone)} | {off[0]:.1e} | {off[1]:.1e} |", flush=True)
    print(
        f"\nLargest difference of a component, relative to the largest one; float64, gloo, torch {torch.__version__}."
    )


def _off(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
