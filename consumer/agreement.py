"""Whether the ranks of one learner, which may be on several machines, are about to train the same thing.

Invariant: no rank goes on whose recipe or model differs from rank 0's: each would keep its own slice, and what is
published would be a mixture of both. Refuses to know where a rank's files are, and Redis.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from broker.documents import shown
from broker.errors import Refused
from broker.fingerprint import model_hash
from consumer.ranks import Ranks
from consumer.recipe import ProcessRecipe

OWN = {"run": {"directory", "model"}, "learner": {"threads"}, "objective": {"reference"}}  # may differ by machine
PIECES, PIECE_BYTES = 16, 1 << 16


def must_agree(recipe: ProcessRecipe, ranks: Ranks) -> None:
    """Called by all ranks at the same moment, before anything is loaded. Raises `Refused` where this one differs."""
    if ranks.world == 1:
        return
    mine = described(recipe)
    if ranks.leads:
        ranks.tell("agree", mine)
        return
    _, theirs = ranks.hear()
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise Refused(
                f"{key} differs: here {shown(mine.get(key))}, rank 0 has {shown(theirs.get(key))}",
                "start every machine with the same recipe, flags and model",
            )


def described(recipe: ProcessRecipe) -> dict[str, str]:
    """What has to be the same everywhere, by its key."""
    plain: dict[str, Any] = recipe.model_dump(mode="json", include={"run", "sampling", "learner", "objective"})
    found = {
        f"{section}.{key}": repr(value)
        for section, values in plain.items()
        for key, value in values.items()
        if key not in OWN.get(section, set())
    }
    for name, folder in (("run.model", recipe.run.model), ("objective.reference", recipe.objective.reference)):
        if folder is not None:
            found[name] = _contents(Path(folder))
    return found | {"policy.dtype": recipe.policy.dtype}


def _contents(folder: Path) -> str:
    """A hash of its configuration and of pieces of its weights: another training would have changed them all."""
    digest = hashlib.sha256(model_hash(folder).encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for piece in range(PIECES):
                file.seek(size * piece // PIECES)
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()[:16]
