"""What Headrace adds to vLLM's worker: taking a policy's weights from a folder into the live model.

Invariant: after `reload_policy` or `exchange_policy` returns, every parameter of the model, tied heads included, is the
folder's; if it raises, the model is in no defined state and the caller must reload a good folder before it samples
again. `prepare_policy` touches nothing of the model.
Refuses to know versions and requests: the caller has paused the engine. Importing it in a worker process also ties that
process to its generator: vLLM's processes survive one that is killed, and hold the device against its successor.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from producer import weights
from producer.spare import Spare
from producer.vllm_engine import GENERATOR_PID


class PolicyExtension:
    """Mixed into the worker class by `worker_extension_cls`; `self` is vLLM's worker."""

    policy_base = Path()  # what an adapter is laid onto
    policy_spare: Spare | None = None

    def reload_policy(self, folder: str, base: str = "") -> None:
        """Replace the weights in place, through vLLM's own loader: it also re-packs what CPU kernels have pre-packed.

        `base` is the folder of the model that an adapter belongs to. Raises `ValueError` if the folder does not hold
        all of the model.
        """
        self.policy_base = Path(base)
        worker: Any = self
        model = worker.get_model()
        if self.policy_spare is not None:
            self.policy_spare.abandon()
        # A tied head gets no weights of its own, which vLLM warns about at every reload; completeness is checked here.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        with _Recording(model) as loaded:
            try:
                worker.reload_weights(weights_iterator=self.policy_tensors(Path(folder)))
            except BaseException:
                _unwind(worker, model)
                raise
        repack_tied(model)
        missing = sorted(dict(model.named_parameters()).keys() - loaded) if loaded else []
        if missing:
            raise ValueError(f"{folder} holds no weights for {missing[0]} ({len(missing)} parameters in all)")
        if self.policy_spare is None:  # the first of all, before anything is sampled: there is time for it
            self.policy_spare = Spare(model, worker.device, worker.model_config.enforce_eager)
            self.policy_spare.prove(self.policy_tensors(Path(folder)))

    def prepare_policy(self, folder: str, base: str = "") -> str:
        """Begin to read a version while the engine goes on; or why it has to be reloaded while the engine stands still.

        Raises `RuntimeError` while an earlier one is still being read.
        """
        spare = self.policy_spare
        if spare is None or spare.unfit:
            return "nothing was loaded before" if spare is None else spare.unfit
        self.policy_base = Path(base)
        spare.begin(self.policy_tensors(Path(folder)))
        return ""

    def policy_prepared(self) -> str | None:
        """None while it is being read; then why that failed, empty if it did not."""
        assert self.policy_spare is not None
        return self.policy_spare.outcome

    def exchange_policy(self) -> None:
        """Replace the weights by those that were prepared. The caller has paused the engine."""
        assert self.policy_spare is not None
        self.policy_spare.exchange()

    def policy_tensors(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the version in `folder` by name."""
        return weights.tensors(folder, self.policy_base)


def repack_tied(model: torch.nn.Module) -> None:
    """Derive again what modules keep of a weight that they share with another one.

    vLLM's reload processes a shared weight for the module that loads it (the embedding) and leaves the other (the head)
    with the packed copy of the old weights, which is what CPU kernels compute with.
    """
    owners: dict[int, list[Any]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and getattr(module, "quant_method", None) is not None:
            owners.setdefault(id(weight), []).append(module)
    for modules in owners.values():
        for module in modules[1:]:
            module.quant_method.process_weights_after_loading(module)


class _Recording:
    """Note which parameters `model.load_weights` says it has loaded: vLLM's reload only logs what it missed."""

    def __init__(self, model: Any) -> None:
        self.model, self.loaded = model, set[str]()

    def __enter__(self) -> set[str]:
        load = self.model.load_weights

        def load_weights(weights: Any) -> Any:
            names = load(weights)
            self.loaded.update(names or ())
            return names

        self.model.load_weights = load_weights
        return self.loaded

    def __exit__(self, *_: object) -> None:
        del self.model.load_weights


def _unwind(worker: Any, model: torch.nn.Module) -> None:
    """Leave a reload that broke off: without this the next one would go on counting where this one stopped."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    finalize_layerwise_reload(model, worker.model_config)


def _end_with(pid: int) -> None:
    """End this process when `pid` ends; vLLM's engine process then follows its worker."""
    if sys.platform == "linux":
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            os._exit(1)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.poll()
        os._exit(1)


# At import: a worker does that first, before it loads the model, and a generator may be killed while it does.
_generator = int(os.environ.get(GENERATOR_PID, os.getpid()))
if _generator != os.getpid():
    threading.Thread(target=_end_with, args=(_generator,), daemon=True, name="end-with-generator").start()
