"""What torch allocates while one looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Elements of every tensor that an operation returned, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # A broadcast view has elements that take no memory; its storage says what it takes.
        self.sizes += [
            min(leaf.numel(), leaf.untyped_storage().nbytes() // leaf.element_size())
            for leaf in tree_leaves(out)
            if isinstance(leaf, Tensor)
        ]
        return out

    @property
    def largest(self) -> int:
        return max(self.sizes)
