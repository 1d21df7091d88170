"""Tensors on their way to the device and back, so that neither side waits for the other.

Invariant: what arrives is what was sent, as it was when it was sent, whatever is done to it afterwards. Refuses to
know what the tensors are.

On CUDA a copy to the device goes through pinned memory: from pageable memory it would first wait for all that the
device has been given to do. A copy back is taken on the device, in the order of its work, and travels on a stream of
its own, beside what comes next. On a CPU both are plain copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same on `device`; what is computed there from now on finds it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Copies(Mapping[str, Tensor]):
    """Tensors on the CPU by name. Whoever first looks at one waits for all, and makes of them what is wanted."""

    def __init__(self, arrive: Callable[[], Tensors]) -> None:
        self._arrive = arrive

    @cached_property
    def _found(self) -> Tensors:
        return self._arrive()

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def taken(tensors: Iterable[tuple[str, Tensor]], then: Callable[[Tensors], Tensors] = lambda found: found) -> Copies:
    """Copies of `tensors` as they are now; `then` is done to them on whichever thread looks first."""
    copies: Tensors = {}
    beside: torch.cuda.Stream | None = None
    for name, tensor in tensors:
        if tensor.is_cuda:
            beside = beside or torch.cuda.Stream(tensor.device)
            copies[name] = _on_its_way(tensor.detach(), beside)
        else:
            copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    arrived = None if beside is None else beside.record_event()

    def arrive() -> Tensors:
        if arrived is not None:
            arrived.synchronize()
        return then(copies)

    return Copies(arrive)


def _on_its_way(tensor: Tensor, beside: torch.cuda.Stream) -> Tensor:
    """Where a CUDA tensor will be once `beside` is through; meanwhile a copy of it takes room on the device."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    beside.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(beside):
        home = torch.empty_like(copy, device="cpu", pin_memory=True).copy_(copy, non_blocking=True)
    copy.record_stream(beside)  # its memory is given to nobody before that
    return home
