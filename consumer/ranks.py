"""The processes that train one model together: rank 0 leads, the others follow.

Invariant: what rank 0 tells, every rank hears, in order, as msgpack. Sums over ranks are of columns in which each
number was filled in by one rank and is 0 elsewhere, so they are exact. Refuses to know what is trained, and Redis.

Collectives of training have torch's usual timeout, since a rank that is missing there is a failure; a follower that
waits for the next word waits as long as the run has nothing to train on, and notices rank 0's death by its connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgpack
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

PATIENCE = timedelta(days=365)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers; alone it is rank 0 of 1, and needs no process group."""

    rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None  # what a model is sharded over
    on_cpu: DeviceMesh | None = None  # the same ranks, for copies of its parts
    words: dist.ProcessGroup | None = None  # gloo: what rank 0 tells, and sums of columns
    saving: dist.ProcessGroup | None = None  # gloo: of the threads that write checkpoints

    @classmethod
    def join(cls, device: str) -> Ranks:
        """The peers that torchrun has started, if it has; `device` is `cpu` or `cuda`."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        mesh = init_device_mesh(device, (world,))
        words, saving = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
        on_cpu = mesh if device == "cpu" else init_device_mesh("cpu", (world,))
        return cls(dist.get_rank(), world, mesh, on_cpu, words, saving)

    @property
    def leads(self) -> bool:
        """This is rank 0."""
        return self.rank == 0

    def leave(self) -> None:
        """The end of the peers, for all of them."""
        if self.world > 1:
            dist.destroy_process_group()

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor on the CPU, in place."""
        if self.world > 1:
            dist.all_reduce(values, group=self.words)
        return values

    def tell(self, *message: Any) -> None:
        """Rank 0: to all others."""
        if self.world > 1:
            send(msgpack.packb(message, use_bin_type=True), self.words)

    def hear(self) -> list[Any]:
        """All others: the next message of rank 0, however long it takes."""
        message: list[Any] = msgpack.unpackb(receive(self.words), raw=False, use_list=True)
        return message


ALONE = Ranks()


def send(payload: bytes, group: dist.ProcessGroup | None) -> None:
    """From rank 0 to all others of `group`."""
    data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(data)]), 0, group=group)
    dist.broadcast(data, 0, group=group)


def receive(group: dist.ProcessGroup | None) -> bytes:
    """What rank 0 sends next."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(size, 0, group=group)
    data = torch.zeros(int(size), dtype=torch.uint8)
    dist.broadcast(data, 0, group=group)
    return data.numpy().tobytes()
