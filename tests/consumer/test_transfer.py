"""What is taken is what was there at that moment; whoever looks first makes of it what is wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from consumer.trainer import Trainer
from consumer.transfer import sent, taken
from tests.consumer.groups import llama, policy_model, random_groups, recipe

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_is_of_the_moment_when_it_was_taken(device: str) -> None:
    there = {name: torch.full((1 << 6, 1 << 10), float(n), device=device).T for n, name in enumerate("abc")}
    copies = taken(there.items())
    for tensor in there.values():
        tensor.fill_(-1.0)
    assert list(copies) == ["a", "b", "c"]
    for number, copy in enumerate(copies.values()):
        assert (copy.device.type, copy.is_contiguous()) == ("cpu", True)
        assert bool((copy == number).all())


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_sent_arrives_whatever_is_done_to_it_afterwards_on_the_device(device: str) -> None:
    numbers = torch.arange(1 << 16)
    there = sent(numbers, torch.device(device))
    assert there.device.type == device
    assert torch.equal((there + 1).cpu(), numbers + 1)


def test_what_is_to_be_done_to_copies_is_done_once_by_whoever_looks_first() -> None:
    workers: list[str] = []

    def twice(copies: dict[str, Tensor]) -> dict[str, Tensor]:
        workers.append(threading.current_thread().name)
        return {name: 2 * tensor for name, tensor in copies.items()}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(3)

    copies = taken(tensors(), twice)
    assert not workers
    reader = threading.Thread(target=lambda: len(copies), name="reader")
    reader.start()
    reader.join()
    assert copies["a"].tolist() == [2.0, 2.0, 2.0]
    assert workers == ["reader"]


class Asked(TorchDispatchMode):
    """Numbers that the host wanted to know of tensors; on a GPU it waits for each, as for sizes that depend on one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["headrace", "scalerl", "areal"])
def test_no_number_is_asked_for_between_the_first_micro_batch_and_the_update(preset: str) -> None:
    of = recipe({"tokens_per_micro_batch": 50}, {"preset": preset})
    trainer, seen = Trainer(policy_model(llama(), of), of), list[list[str]]()
    backward = trainer._backward

    def watched(*given: Any) -> Tensor:
        with Asked() as asked:
            part = backward(*given)
        seen.append(asked.seen)
        return part

    trainer._backward = watched  # type: ignore[assignment,method-assign]
    trainer.train(random_groups(0), 3)
    assert seen == [[]] * len(seen)
    assert len(seen) > 1
