"""The policy model: fp32 master weights, log-probs of chosen tokens, snapshots for publishing.

Invariant: a token's log-prob is log softmax(logits/T) in fp32, whatever precision the body ran in. Refuses to know
advantages, optimizers and text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from broker.errors import Refused
from broker.settings import RecipeBase
from consumer.pack import MicroBatch
from consumer.settings import LearnerSettings
from consumer.sharding import shard, whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A head that does more than a product is not served by selecting hidden states before it.
HEAD_EXTRAS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}


class PolicyModel:
    """A causal language model that is trained."""

    def __init__(self, module: Any, settings: LearnerSettings, policy_dtype: torch.dtype, device: torch.device) -> None:
        for name, neutral in HEAD_EXTRAS.items():
            if getattr(module.config, name, neutral) not in (None, neutral):
                raise Refused(
                    f"the model's configuration sets {name}", "its output head is not supported yet; use another model"
                )
        self.module = module.to(device)
        self.device, self.policy_dtype = device, policy_dtype
        kind = settings.autocast if settings.autocast != "auto" else ("bfloat16" if device.type == "cuda" else "none")
        self._autocast = kind == "bfloat16"
        if settings.gradient_checkpointing:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})
        self.module.train()

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
        return cls(module, settings, DTYPES[recipe.policy.dtype], device)

    def logprobs(self, batch: MicroBatch, temperature: float, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) of the targets and entropies (N,) of their distributions in nats, fp32.

        The entropies have a gradient only where `entropy` asks for one.
        """
        with self._precision():
            hidden = self.module.base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
            ).last_hidden_state  # (R, T, D)
        chosen = hidden.flatten(0, 1)[batch.predictor]  # (N, D): the head runs for completion tokens only
        wide = torch.promote_types(chosen.dtype, torch.float32)
        # Outside autocast: a logit rounded to bfloat16 is off by up to 0.4 %, which no later float32 brings back.
        logits = self.module.get_output_embeddings()(chosen.to(wide)) / temperature  # (N, V)
        normaliser = torch.logsumexp(logits, -1)
        chosen_logits = logits.gather(1, batch.targets[:, None])[:, 0]
        with torch.set_grad_enabled(entropy and torch.is_grad_enabled()):
            spread = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
        return chosen_logits - normaliser, spread

    def frozen(self) -> PolicyModel:
        """The same, never to be trained."""
        self.module.requires_grad_(False).eval()
        return self

    def snapshot(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A copy of the weights on the CPU, tied ones once, that training does not touch any more."""
        wanted = dtype or self.policy_dtype
        parameters = {name for name, _ in self.module.named_parameters()}
        return {
            name: whole(t, wanted if name in parameters else None).to("cpu", copy=True).contiguous()
            for name, t in self.named_tensors()
        }

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What makes the model what it is: parameters, tied ones once, and the buffers that are part of it."""
        yield from self.module.named_parameters()
        yield from ((name, b) for name, b in self.module.named_buffers() if name in self._persistent_buffers)

    def shard(self, mesh: DeviceMesh) -> PolicyModel:
        """The same, its weights spread over the ranks of `mesh`."""
        shard(self.module, set(self.module._no_split_modules or ()), mesh)
        return self

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

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            yield


def device_of(wanted: str) -> str:
    """`cpu` or `cuda`, whichever `learner.device` comes to here. Raises `Refused`."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Refused(
            "learner.device = 'cuda' and torch sees no GPU", "use learner.device = 'cpu', or install the GPU lock"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
