"""A model's weights spread over ranks (FSDP2), and gathered again.

Invariant: gradients are *summed* over ranks, never averaged: the loss already has the whole batch in its denominators.
Refuses to know what is computed with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def shard(root: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Spread the parameters of `root` over the ranks of `mesh`, each of `blocks`, which are parts of it, by itself.

    Weights of one block at a time are gathered for its forward and again for its backward pass.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a scaled sum is what gloo has not, and what nobody needs


def whole(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of which this rank may hold a part, gathered from all of them; cast first, where fewer bytes travel."""
    part = tensor.detach() if dtype is None else tensor.detach().to(dtype)
    return part.full_tensor() if isinstance(part, DTensor) else part
