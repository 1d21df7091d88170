"""Whether the disk of a run's folder has room for what the run will write there.

Invariant: what is refused would not have fitted; what is let through is an estimate. Refuses to know who writes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from broker.documents import read_object
from broker.errors import Malformed, Refused
from deploy.recipe import Recipe


def require_disk(folder: Path, recipe: Recipe) -> None:
    """Raises `Refused` for a run whose versions and checkpoints cannot fit: bytes of fp32 weights, two Adam moments."""
    weights = sum(path.stat().st_size for path in Path(recipe.run.model).glob("*.safetensors"))
    trained = _trained_share(recipe)
    checkpoints = 3 * (recipe.learner.keep_checkpoints + 1) * trained
    versions = (recipe.policy.keep + 2) / (1 if recipe.policy.dtype == "float32" else 2)
    if recipe.learner.lora_rank and recipe.learner.lora_publish == "adapter":
        versions = (recipe.policy.keep + 2) * trained
    needed = weights * (checkpoints + versions + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refused(
            f"{folder} has {free / 1e6:,.1f} MB free and the run needs about {needed / 1e6:,.1f} MB",
            "free some, or set run.directory to a larger disk",
        )


def _trained_share(recipe: Recipe) -> float:
    """Of the weights, about: an adapter of rank r has r·(O + I) numbers beside the O·I of its layer."""
    try:
        config = read_object((Path(recipe.run.model) / "config.json").read_bytes())
    except (OSError, Malformed):
        return 1.0  # whoever loads the model says what is wrong with it
    width, rank = config.get("hidden_size"), recipe.learner.lora_rank
    return min(1.0, 2 * rank / width) if rank and isinstance(width, int) and width > 0 else 1.0
