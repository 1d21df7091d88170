"""Adapters (LoRA, Hu et al. 2021) in a model that is otherwise frozen, through peft.

Invariant: only adapters are trained and kept in checkpoints; merged into their base they are an ordinary model under
the base's own names. Refuses to know how a policy travels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from broker import adapter
from broker.errors import Refused
from consumer.settings import LearnerSettings

BASE, NAME = ".base_layer.", "default"
DOWN, UP = f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"


def add_adapters(module: Any, settings: LearnerSettings, seed: int) -> None:
    """Freeze `module` and give its linear layers adapters, the same for the same seed. Raises `Refused`."""
    from peft import LoraConfig, inject_adapter_in_model  # late: it takes seconds to import

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=list(settings.lora_targets) or "all-linear",
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in module.modules()),
        task_type="CAUSAL_LM",
    )
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, module)
        except ValueError as error:
            raise Refused(f"learner.lora_targets: {str(error).splitlines()[0]}", "name modules of the model") from None
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            raise Refused(f"learner.lora_targets would train {name}", "name linear layers of the model's body")


def merged(tensors: Mapping[str, Tensor], scale: float, transposed: bool) -> dict[str, Tensor]:
    """A model's tensors on the CPU, adapters and all, → those of the plain model with the adapters in it."""
    out = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            continue
        plain = name.replace(BASE, ".")
        if BASE in name and name.endswith(".weight"):
            stem = plain.removesuffix(".weight")
            down, up = (tensors[stem + side].float().numpy() for side in (DOWN, UP))
            tensor = torch.from_numpy(adapter.merged(tensor.float().numpy(), down, up, scale, transposed))
        out[plain] = tensor
    return out


def write_adapter(folder: Path, module: Any, tensors: Mapping[str, Tensor], base: Path, dtype: str) -> None:
    """A folder that peft loads, and that generators lay onto their own copy of `base`.

    The same adapter always gives the same bytes: a learner that comes back may have to write a version once more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for name, tensor in tensors.items():
        for side, kept in ((DOWN, adapter.DOWN), (UP, adapter.UP)):
            if name.endswith(side):
                named[adapter.PREFIX + name.removesuffix(side) + kept] = tensor.float().contiguous()
    header = {"format": "pt", "base": adapter.digest(base), "dtype": dtype}
    (folder / adapter.WEIGHTS).write_bytes(_in_order(save(named, header)))
    config = module.peft_config[NAME]
    config.base_model_name_or_path, config.fan_in_fan_out = str(base), is_transposed(module)
    config.target_modules = sorted(config.target_modules)  # peft's set is written in another order by every process
    config.save_pretrained(folder)


def _in_order(raw: bytes) -> bytes:
    """A safetensors file with its header's keys sorted: the library writes its metadata in a random order."""
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stays aligned
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


def layers_of(module: nn.Module) -> list[Any]:
    """The layers that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [part for part in module.modules() if isinstance(part, BaseTunerLayer)]


def scale_of(module: nn.Module) -> float:
    """alpha/r, the same for all layers."""
    return float(layers_of(module)[0].scaling[NAME])


def is_transposed(module: nn.Module) -> bool:
    """The base keeps weights as (I, O), as GPT-2 does."""
    return bool(layers_of(module)[0].fan_in_fan_out)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The base alone."""
    layers = layers_of(module)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
