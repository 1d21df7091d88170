"""A checkpoint's tensors where several ranks hold a part of each: every rank writes its own, any number can read them.

Invariant: the copy is taken at once and training does not touch it; what lies on disk is safetensors with each part's
place in the whole in its header, and nothing is pickled. Refuses to know what the tensors mean, and when a checkpoint
counts as written.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue

import structlog
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from consumer.ranks import Ranks, receive, send

END = b"\0"  # in place of a folder: no checkpoint will come any more


class Shards:
    """A copy of this rank's parts, on the CPU; the copies that all ranks took at one moment have the same `number`."""

    def __init__(self, tensors: Mapping[str, Tensor], ranks: Ranks, number: int) -> None:
        self._ranks, self.number = ranks, number
        self._tensors = {name: _copied(tensor, ranks.on_cpu) for name, tensor in tensors.items()}

    def write(self, folder: Path) -> None:
        """Rank 0: have every rank write its parts into `folder`. Raises `OSError` where one of them has no room."""
        send(f"{self.number} {folder}".encode(), self._ranks.saving)
        self.join_in(folder)

    def join_in(self, folder: Path) -> None:
        """Write our parts, while all others do. Raises `OSError` on all of them where one has no room."""
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            save(dict(self._tensors), storage_writer=writer, process_group=self._ranks.saving)
        except CheckpointException as error:
            for failure, _ in error.failures.values():
                if isinstance(failure, OSError):
                    raise failure from error
            raise


class Assistant:
    """A follower's thread: writes its part whenever rank 0 writes a checkpoint."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._offers = ranks, SimpleQueue[Shards]()
        self._thread = threading.Thread(target=self._assist, name="checkpoints", daemon=True)
        self._thread.start()

    def offer(self, shards: Shards) -> None:
        """This is what is to be written, unless rank 0 gives it up."""
        self._offers.put(shards)

    def close(self) -> None:
        """Wait for the end, which rank 0 has announced."""
        self._thread.join()

    def _assist(self) -> None:
        while (word := receive(self._ranks.saving)) != END:
            number, _, folder = word.decode().partition(" ")
            while (shards := self._offers.get()).number < int(number):
                pass  # one that rank 0 has given up
            try:
                shards.join_in(Path(folder))
            except OSError as error:  # rank 0 has heard of it as well, and decides
                log = structlog.get_logger("learner")
                log.warning("no room for a part of a checkpoint", rank=self._ranks.rank, error=str(error))


def dismiss_assistants(ranks: Ranks) -> None:
    """Rank 0: no checkpoint will come any more."""
    if ranks.world > 1:
        send(END, ranks.saving)


def read(folder: Path, wanted: dict[str, Tensor], ranks: Ranks) -> None:
    """Fill `wanted`, name → tensor or our part of one, from what one process or any number of ranks has written.

    Raises `KeyError` for a name that is not there.
    """
    if missing := set(wanted) - set(contents(folder)):
        raise KeyError(min(missing))
    reader = HuggingFaceStorageReader(str(folder))
    load(wanted, storage_reader=reader, process_group=ranks.words, no_dist=ranks.world == 1)


def contents(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names of the tensors in a checkpoint, and their shapes when whole."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {n: (of.size, of.properties.dtype) for n, of in found.items() if isinstance(of, TensorStorageMetadata)}


def _copied(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True).contiguous()
    local = tensor.to_local().detach().to("cpu", copy=True).contiguous()
    return DTensor.from_local(
        local, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
