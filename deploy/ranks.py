"""How a learner of several processes is started: by torchrun, one process a GPU, on one machine or on several.

Invariant: a learner of one process is started without it; on several machines each is started with the same recipe, and
what differs between them is in the environment alone. Refuses to know what the processes do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from broker.errors import Refused
from deploy.recipe import Recipe

TORCHRUN = ["-m", "torch.distributed.run"]


def learner(recipe: Recipe, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Arguments of a Python that runs the learner of `recipe` on this machine; its own come after them.

    Raises `Refused` where one of several machines has not been told which it is.
    """
    ranks, nodes = recipe.learner.ranks, recipe.learner.nodes
    if nodes > 1:
        return [*TORCHRUN, *_among(nodes, environ), "--nproc-per-node", str(ranks), "-m", "consumer"]
    if ranks > 1:
        return [*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), "-m", "consumer"]
    return ["-m", "consumer"]


def _among(nodes: int, environ: Mapping[str, str]) -> list[str]:
    number, address, port = (environ.get(name, "") for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
    if not (number.isdigit() and int(number) < nodes) or not address or not port.isdigit():
        raise Refused(
            f"learner.nodes = {nodes}, and this machine does not know its place among them",
            f"set NODE_RANK (0 to {nodes - 1}), MASTER_ADDR and MASTER_PORT (of node 0) on each",
        )
    return ["--nnodes", str(nodes), "--node-rank", number, "--master-addr", address, "--master-port", port]
