"""A second set of the model's weights in a vLLM worker, filled while the first one serves: then a refresh stops the
engine for an exchange alone, not for reading, merging and re-packing.

Invariant: nothing that computes is touched before `exchange`, which makes the model what vLLM's own reload of the same
tensors makes it; that was tried on this very model before (`prove`), and one that is too peculiar has no spare set.
Refuses to know versions, files and requests.

It is filled by the model's own `load_weights`, called on a twin: the same modules with parameters of their own, in the
layout in which vLLM loads them. On a CPU each twin packs its weights as vLLM does, and `exchange` hands packed weights
and storages over; on a GPU the set lies in pinned host memory and is copied into the live one, which CUDA graphs hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn import Module, Parameter

Tensors = Iterable[tuple[str, torch.Tensor]]

PLAIN = {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"}  # what becomes of these weights is known here
UNTOUCHED = {"Attention"}  # has a step after loading, and nothing to do in it where nothing is quantised
MOST_BYTES = 16 << 30  # of host memory, a worker
DEFERRING = "online_process_loader"  # what vLLM's reload puts before a weight's own loader
PACKED = "cpu_linear"  # vLLM's name for a layer's product with what it has packed


class Spare:
    """Of a worker's `model` on `device`."""

    def __init__(self, model: Module, device: torch.device, eager: bool) -> None:
        self._model, self._device = model, device
        self._names: set[str] = set()  # that a complete set has
        self.unfit = _peculiar(model, device, eager) or "not tried yet"
        self._twins: list[tuple[Module, Module]] = []
        self._filling: threading.Thread | None = None
        self._failure = ""
        self._abandoned = threading.Event()

    def prove(self, tensors: Tensors) -> None:
        """Fill it with what the model holds now and compare: from then on it is trusted, or `unfit` says why not."""
        if self.unfit != "not tried yet":
            return
        try:
            self._names = self._fill(tensors, strange=True)
            self.unfit = _different(self._twins)
        except Exception as error:  # a model class that loads in a way of its own
            self.unfit = f"{type(error).__name__}: {error}"[:300]
        self._twins = []

    def begin(self, tensors: Tensors) -> None:
        """Fill it on a thread. Raises `RuntimeError` while one that was abandoned has not noticed yet."""
        self._abandoned.set()
        if self._filling is not None and self._filling.is_alive():
            raise RuntimeError("an earlier version is still being read")
        self._abandoned, self._failure, self._twins = threading.Event(), "", []
        self._filling = threading.Thread(target=self._work, args=(tensors,), daemon=True, name="spare-weights")
        self._filling.start()

    @property
    def outcome(self) -> str | None:
        """None while it is being filled; then why it could not be, empty if it is full."""
        return None if self._filling is None or self._filling.is_alive() else self._failure

    def abandon(self) -> None:
        """Stop filling it; nothing of it goes on when this returns."""
        self._abandoned.set()
        if self._filling is not None:
            self._filling.join()
        self._twins = []

    @torch.no_grad()
    def exchange(self) -> None:
        """The model has these weights from now on; nothing may be computing."""
        assert self._twins, "nothing was prepared"
        for live, twin in self._twins:
            for name, weight in _own(live):
                if self._device.type == "cpu":
                    weight.data = twin._parameters[name].data  # type: ignore[union-attr]
                else:
                    weight.data.copy_(twin._parameters[name], non_blocking=True)  # type: ignore[arg-type]
            if PACKED in live.__dict__:
                live.__dict__[PACKED], twin.__dict__[PACKED] = twin.__dict__[PACKED], live.__dict__[PACKED]
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        old, self._twins = self._twins, []
        threading.Thread(target=old.clear, daemon=True).start()  # to free hundreds of megabytes takes its time

    def _work(self, tensors: Tensors) -> None:
        try:
            names = self._fill(self._until_abandoned(tensors))
            if missing := sorted(self._names - names):
                raise ValueError(f"no weights for {missing[0]} ({len(missing)} parameters in all)")
        except Exception as error:  # whatever a file, a library or a model raises is told
            self._failure = str(error) or type(error).__name__

    def _until_abandoned(self, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        abandoned = self._abandoned
        for item in tensors:
            if abandoned.is_set():
                raise InterruptedError("another version is wanted")
            yield item

    @torch.no_grad()
    def _fill(self, tensors: Tensors, *, strange: bool = False) -> set[str]:
        """Names of the parameters that were loaded. `strange`: first with numbers that no model has."""
        if self._device.type != "cpu":
            torch.accelerator.set_device_index(self._device)  # pinned memory belongs to a device's context
        twins: dict[int, tuple[Module, Module]] = {}
        top: Any = _twin(self._model, twins, {}, pinned=self._device.type != "cpu")
        pairs = list(twins.values())
        if strange:
            for _, twin in pairs:
                for _, weight in _own(twin):
                    weight.fill_(torch.nan)
        names = set(top.load_weights(tensors) or ())
        if self._device.type == "cpu":
            for _, twin in pairs:
                if (method := getattr(twin, "quant_method", None)) is not None:
                    method.process_weights_after_loading(twin)
        self._twins = pairs
        return names


def _own(module: Module) -> Iterator[tuple[str, Parameter]]:
    """Its own weights by name, those of its children left out."""
    return ((name, weight) for name, weight in module._parameters.items() if weight is not None)


def _twin(
    module: Module, twins: dict[int, tuple[Module, Module]], weights: dict[int, Parameter], *, pinned: bool
) -> Module:
    """The same module with weights of its own; what is shared (a tied head) is shared among twins, too."""
    if id(module) in twins:
        return twins[id(module)][1]
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twins[id(module)] = module, twin
    twin.__dict__["_modules"] = {
        name: child if child is None else _twin(child, twins, weights, pinned=pinned)
        for name, child in module._modules.items()
    }
    for name, weight in _own(module):
        if id(weight) not in weights:
            weights[id(weight)] = _empty(module, twin, name, weight, pinned=pinned)
    own = {name: weight if weight is None else weights[id(weight)] for name, weight in module._parameters.items()}
    passing = module._non_persistent_buffers_set
    twin.__dict__["_parameters"] = own
    twin.__dict__["_buffers"] = {name: buffer for name, buffer in module._buffers.items() if name in passing}
    return twin


def _empty(module: Module, twin: Module, name: str, live: Parameter, *, pinned: bool) -> Parameter:
    """Host memory for a weight in the layout in which it is loaded, and what loads it."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

    loaded: Any = get_layerwise_info(module).restore_metadata[0].get(name, live)
    made: Any = torch.empty_strided(
        tuple(loaded.size()), loaded.stride(), dtype=loaded.dtype, device="cpu", pin_memory=pinned
    )
    made.__class__, made.__dict__ = loaded.__class__, loaded.__dict__.copy()
    made = restore_layer_refs(made, twin)
    loader: Any = getattr(made, "weight_loader", None)
    while getattr(loader, "__name__", "") == DEFERRING:  # left there by an earlier reload, it would load nothing
        loader = made.weight_loader = loader.__wrapped__
    return made  # type: ignore[no-any-return]


def _peculiar(model: Module, device: torch.device, eager: bool) -> str:
    """Why this model has no spare set; empty if it may have one."""
    if device.type == "cpu" and not eager:
        return "a compiled model on a CPU keeps its packed weights to itself"
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if size > MOST_BYTES:
        return f"{size >> 30} GiB of weights are too many to keep twice"
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None and type(method).__name__ not in PLAIN:
            return f"{name} has weights of its own kind ({type(method).__name__})"
        derived = getattr(module, "process_weights_after_loading", None)
        if derived is not None and type(module).__name__ not in UNTOUCHED:
            return f"{name} derives something from its weights ({type(module).__name__})"
    return ""


@torch.no_grad()
def _different(twins: Iterable[tuple[Module, Module]]) -> str:
    """Which weight the twins do not have as the live modules have it; empty if there is none."""
    for live, twin in twins:
        for name, weight in _own(live):
            other = twin._parameters[name]
            assert other is not None
            if weight.shape != other.shape or not torch.equal(weight.data, other.data.to(weight.device)):
                return f"{type(live).__name__}.{name} is not kept as it is loaded"
        if PACKED in live.__dict__:
            width = live.__dict__.get("input_size_per_partition") or live.__dict__["embedding_dim"]
            some = torch.linspace(-1, 1, 2 * width).reshape(2, width)
            one, two = (_product(module, some) for module in (live, twin))
            if not torch.equal(one, two):
                return f"{type(live).__name__} packs its weights in another way"
    return ""


def _product(module: Any, inputs: torch.Tensor) -> Any:
    """What a layer makes of `inputs` (N, K), without its bias."""
    apply: Callable[..., Any] = module.quant_method.apply
    return apply(module, inputs.to(module.params_dtype), None)
