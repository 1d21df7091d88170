"""The weights of a policy version, whether its folder holds a whole model or an adapter to lay onto the base.

Invariant: an adapter laid on here gives what the learner would have published merged, by the same arithmetic. Refuses
to know engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from broker import adapter
from broker.adapter import Adapter
from broker.errors import Malformed, Refused
from producer import model_files
from producer.model_files import Shapes, weight_files


def shapes(folder: Path, base: Path) -> Shapes:
    """Name and shape of every tensor, from headers alone. Raises `OSError`, `ValueError`, `Refused`."""
    if not adapter.is_adapter(folder):
        return model_files.shapes(folder)
    found = model_files.shapes(base)
    try:
        _read(folder, base).fits(found)
    except Malformed as error:
        raise ValueError(str(error)) from None
    return found


def tensors(folder: Path, base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by name; sorted, so that a layer is complete before the next one begins. Raises as `shapes` does."""
    addition = _read(folder, base) if adapter.is_adapter(folder) else None
    with ExitStack() as stack:
        files = weight_files(folder if addition is None else base)
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        for name, file in sorted((name, i) for i, each in enumerate(opened) for name in each.keys()):  # noqa: SIM118
            tensor = opened[file].get_tensor(name)
            yield name, tensor if addition is None else _with(addition, name, tensor)


def _read(folder: Path, base: Path) -> Adapter:
    """Raises `ValueError` for one that is none, `Refused` for one of another base, which no later version will mend."""
    try:
        found = Adapter.read(folder)
    except Malformed as error:
        raise ValueError(str(error)) from None
    if found.base != adapter.digest(base):
        raise Refused(
            f"the learner's adapter belongs to other weights than those in {base}",
            "give learner and generators the same run.model, byte for byte",
        )
    return found


def _with(addition: Adapter, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    weight = torch.from_numpy(addition.onto(name, tensor.float().numpy()))
    return weight.to(getattr(torch, addition.dtype))
