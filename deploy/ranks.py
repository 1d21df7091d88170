"""How a learner of several processes is started: by torchrun, one process a GPU.

Invariant: a learner of one process is started without it. Refuses to know what the processes do.
"""

from __future__ import annotations

from deploy.recipe import Recipe


def learner(recipe: Recipe) -> list[str]:
    """Arguments of a Python that runs the learner of `recipe` on this machine; its own come after them."""
    ranks = recipe.learner.ranks
    if ranks == 1:
        return ["-m", "consumer"]
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "consumer"]
