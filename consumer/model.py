"""The policy model: loaded from a folder, made ready to train, asked for log-probs, copied out for publishing.

Invariant: its weights are fp32 masters, and what is published is a copy that training does not touch. Refuses to know
advantages, optimizers and text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from broker.errors import Refused
from broker.settings import RecipeBase
from consumer.attention import install
from consumer.compiling import compile_layers
from consumer.logprobs import LogProbs
from consumer.pack import Layout, MicroBatch
from consumer.settings import LearnerSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A head that does more than a product is not served by selecting hidden states before it.
HEAD_EXTRAS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}


class PolicyModel:
    """A causal language model that is trained: `module` as transformers has it, `net` the whole way to log-probs.

    `layout` is what its micro-batches are to be packed in.
    """

    def __init__(self, module: Any, settings: LearnerSettings, policy_dtype: torch.dtype, device: torch.device) -> None:
        for name, neutral in HEAD_EXTRAS.items():
            if getattr(module.config, name, neutral) not in (None, neutral):
                raise Refused(
                    f"the model's configuration sets {name}", "its output head is not supported yet; use another model"
                )
        self.layout = _layout(module, settings)
        self.module = module.to(device)
        self.device, self.policy_dtype = device, policy_dtype
        kind = settings.autocast if settings.autocast != "auto" else ("bfloat16" if device.type == "cuda" else "none")
        self.net = LogProbs(self.module, settings.logit_chunk, autocast=kind == "bfloat16")
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
        device = torch.device(_device(settings.device))
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
        return cls(module, settings, DTYPES[recipe.policy.dtype], device)

    def logprobs(self, batch: MicroBatch, temperature: float, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) of the targets and entropies (N,) of their distributions in nats, fp32.

        The entropies have a gradient only where `entropy` asks for one.
        """
        found: tuple[Tensor, Tensor] = self.net(batch, temperature, entropy)
        return found

    def snapshot(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A copy of the weights on the CPU, tied ones once, that training does not touch any more."""
        wanted = dtype or self.policy_dtype
        return {
            name: p.detach().to("cpu", wanted, copy=True).contiguous() for name, p in self.module.named_parameters()
        } | {
            name: b.detach().to("cpu", copy=True).contiguous()
            for name, b in self.module.named_buffers()
            if name in self._persistent_buffers
        }

    def write(self, folder: Path, snapshot: dict[str, Tensor]) -> None:
        """A model directory in Hugging Face layout, without the tokenizer's files."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(snapshot, folder / "model.safetensors", {"format": "pt"})
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


def _layout(module: Any, settings: LearnerSettings) -> Layout:
    if install(module):
        return settings.layout
    if settings.layout in ("packed", "shared_prompt"):
        raise Refused(
            f"learner.layout = '{settings.layout}' and {type(module).__name__} cannot keep sequences of a row apart",
            "use learner.layout = 'auto', which pads for such a model",
        )
    return "padded"


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Refused(
            "learner.device = 'cuda' and torch sees no GPU", "use learner.device = 'cpu', or install the GPU lock"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
