"""The policy model: loaded from a folder, made ready to train, asked for log-probs, copied out for publishing.

Invariant: its weights are fp32 masters, and what is published is a copy that training does not touch. Refuses to know
advantages, optimizers and text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from broker.adapter import digest
from broker.errors import Refused
from broker.settings import RecipeBase
from consumer import lora
from consumer.attention import install
from consumer.compiling import compile_layers, layers_of
from consumer.effort import Flops, peak
from consumer.head import chunk_for
from consumer.logprobs import LogProbs
from consumer.pack import Layout, MicroBatch
from consumer.settings import LearnerSettings
from consumer.sharding import shard, whole
from consumer.transfer import Copies, Tensors, taken

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Copied = Literal["published", "whole", "adapter"]
# A head that does more than a product is not served by selecting hidden states before it.
HEAD_EXTRAS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}


class Scorer(Protocol):
    """What gives log-probs."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def logprobs(self, batch: MicroBatch, temperature: float, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """As `PolicyModel.logprobs`."""


class PolicyModel:
    """A causal language model that is trained: `module` as transformers has it, `net` the whole way to log-probs.

    `layout` is what its micro-batches are to be packed in; `flops` what a token costs, `peak_flops` what the device can
    do a second, None where that is not known.
    """

    def __init__(
        self,
        module: Any,
        settings: LearnerSettings,
        policy_dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        base: Path = Path(),
    ) -> None:
        for name, neutral in HEAD_EXTRAS.items():
            if getattr(module.config, name, neutral) not in (None, neutral):
                raise Refused(
                    f"the model's configuration sets {name}", "its output head is not supported yet; use another model"
                )
        self.layout = _layout(module, settings)
        self.lora, self.base = settings.lora_rank > 0, base
        self.publishes_adapter = self.lora and settings.lora_publish == "adapter"
        if self.lora:
            lora.add_adapters(module, settings, seed)
        self.module = module.to(device)
        self.device, self.policy_dtype = device, policy_dtype
        kind = settings.autocast if settings.autocast != "auto" else ("bfloat16" if device.type == "cuda" else "none")
        self.flops = Flops.of(self.module)
        self.peak_flops = settings.peak_flops or peak(device, bfloat16=kind == "bfloat16")
        if kind == "bfloat16" and device.type == "cuda" and settings.tf32:
            torch.set_float32_matmul_precision("high")  # of this process: nothing but the head multiplies in fp32
        chunk = settings.logit_chunk or chunk_for(module.config.get_text_config().vocab_size, device.type)
        self.net = LogProbs(self.module, chunk, autocast=kind == "bfloat16", compiled=settings.compile)
        if settings.gradient_checkpointing:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})
        if settings.compile:
            compile_layers(self.module, device)
        self.module.train()
        for part in self.module.modules():
            if isinstance(part, nn.Dropout):  # a policy that drops units is another one than the one that sampled
                part.p = 0.0

    @classmethod
    def load(cls, folder: Path, recipe: RecipeBase, settings: LearnerSettings) -> PolicyModel:
        """From a Hugging Face directory, safetensors only. Raises `Refused` when there is no such model."""
        device = torch.device(device_of(settings.device))
        logging.disable_progress_bar()
        try:
            module = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=recipe.run.trust_remote_code,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise Refused(f"cannot load a model from {folder}: {str(error).splitlines()[0]}") from None
        return cls(module, settings, DTYPES[recipe.policy.dtype], device, seed=recipe.run.seed, base=folder)

    def logprobs(self, batch: MicroBatch, temperature: float, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) of the targets and entropies (N,) of their distributions in nats, fp32.

        The entropies have a gradient only where `entropy` asks for one.
        """
        found: tuple[Tensor, Tensor] = self.net(batch, temperature, entropy)
        return found

    def frozen(self) -> PolicyModel:
        """The same, never to be trained."""
        self.module.requires_grad_(False).eval()
        return self

    def reference(self) -> Scorer:
        """The model as it was before its adapters, with the weights that are here anyway. Only with adapters."""
        return _WithoutAdapters(self)

    def snapshot(self, what: Copied = "published") -> Copies:
        """A copy that training does not touch any more, on its way to the CPU; whoever looks at it waits for it.

        `whole`: all weights, tied ones once, adapters merged. `adapter`: the adapters alone. `published`: whichever of
        the two the recipe publishes.
        """
        if not self.lora:
            return taken((name, whole(t, self._published_dtype(t))) for name, t in self._all_tensors())
        if what == "adapter" or (what == "published" and self.publishes_adapter):
            return taken((name, whole(t)) for name, t in self.named_tensors())
        return taken(((name, whole(t)) for name, t in self._all_tensors()), self._merged)

    def _merged(self, tensors: Tensors) -> Tensors:
        plain = lora.merged(tensors, lora.scale_of(self.module), lora.is_transposed(self.module))
        return {name: tensor.to(self._published_dtype(tensor)) for name, tensor in plain.items()}

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What training changes, and so what a checkpoint holds: all, or the adapters."""
        if self.lora:
            yield from ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)
        else:
            yield from self._all_tensors()

    @property
    def adapts(self) -> dict[str, Any] | None:
        """What the adapters in a checkpoint belong to, beyond what their shapes tell; None without adapters."""
        return {"base": digest(self.base), "scale": lora.scale_of(self.module)} if self.lora else None

    def _all_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What makes the model what it is: parameters, tied ones once, and the buffers that are part of it."""
        yield from self.module.named_parameters()
        yield from ((name, b) for name, b in self.module.named_buffers() if name in self._persistent_buffers)

    def _published_dtype(self, tensor: Tensor) -> torch.dtype:
        return self.policy_dtype if tensor.is_floating_point() else tensor.dtype

    def shard(self, mesh: DeviceMesh) -> PolicyModel:
        """The same, its weights spread over the ranks of `mesh`."""
        shard(self.net, layers_of(self.module), mesh)
        return self

    def write(self, folder: Path, snapshot: Mapping[str, Tensor]) -> None:
        """A model directory in Hugging Face layout, or an adapter in peft's, without the tokenizer's files."""
        folder.mkdir(parents=True, exist_ok=True)
        if any(".lora_" in name for name in snapshot):
            dtype = str(self.policy_dtype).removeprefix("torch.")
            lora.write_adapter(folder, self.module, snapshot, self.base, dtype)
            return
        save_file(dict(snapshot), folder / "model.safetensors", {"format": "pt"})
        config = type(self.module.config).from_dict(self.module.config.to_dict())
        config.dtype = next(iter(snapshot.values())).dtype
        config.save_pretrained(folder)
        if isinstance(self.module.generation_config, GenerationConfig):
            self.module.generation_config.save_pretrained(folder)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def _persistent_buffers(self) -> set[str]:
        return set(self.module.state_dict()) - {
            name for name, _ in self.module.named_parameters(remove_duplicate=False)
        }


@dataclass(frozen=True)
class _WithoutAdapters:
    model: PolicyModel

    @property
    def device(self) -> torch.device:
        return self.model.device

    def logprobs(self, batch: MicroBatch, temperature: float, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
        with lora.adapters_off(self.model.module):
            return self.model.logprobs(batch, temperature, entropy=entropy)


def _layout(module: Any, settings: LearnerSettings) -> Layout:
    if install(module):
        return settings.layout
    if settings.layout in ("packed", "shared_prompt"):
        raise Refused(
            f"learner.layout = '{settings.layout}' and {type(module).__name__} cannot keep sequences of a row apart",
            "use learner.layout = 'auto', which pads for such a model",
        )
    return "padded"


def device_of(wanted: str) -> str:
    """`cpu` or `cuda`, whichever `learner.device` comes to here. Raises `Refused`."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Refused(
            "learner.device = 'cuda' and torch sees no GPU", "use learner.device = 'cpu', or install the GPU lock"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
