"""Who is compared in the learner's leg: models of a shape, and the ways to train on groups.

Invariant: all ways begin with the same weights, and each takes a whole step: from groups to updated weights. Refuses to
know how long that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.padded import PaddedTrainer
from broker.schema import RolloutGroup
from consumer.compiling import why_not
from consumer.effort import Flops, peak
from consumer.figures import StepStats
from consumer.model import PolicyModel
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer

PADDED, SORTED = "padded loop", "padded loop, longest first"
PACKED, SHARED, COMPILED = "packed", "shared prompts", "shared prompts, compiled"
WHOLE = "shared prompts, head in fp32"
EVERY = (PADDED, SORTED, PACKED, SHARED, COMPILED, WHOLE)
FEW = (PADDED, SHARED, COMPILED)
LAYOUT = {PACKED: "packed", SHARED: "shared_prompt", COMPILED: "shared_prompt", WHOLE: "shared_prompt"}


@dataclass(frozen=True)
class Shape:
    """A model: how to make it, and how much of a batch is computed at once, padded `rows` or `tokens` of ours.

    `groups` a step; `sides` that are compared, where there is room for all of them on one device.
    """

    name: str
    make: Callable[[], Any]
    vocabulary: int
    rows: int = 32
    tokens: int = 4096
    groups: int = 4
    sides: tuple[str, ...] = (PADDED, SORTED, PACKED, SHARED)


def smollm2(layers: int, **how: Any) -> Shape:
    """SmolLM2-135M with so many of its 30 layers and that share of its vocabulary."""
    config: Any = LlamaConfig(
        vocab_size=49152 * layers // 30, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    name = "135M" if layers == 30 else f"135M, {layers} of 30 layers"
    return Shape(name, lambda: LlamaForCausalLM(config), config.vocab_size, **how)


def qwen2(**how: Any) -> Shape:
    """Qwen2.5-0.5B."""
    config: Any = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
    )  # fmt: skip
    return Shape("0.5B", lambda: Qwen2ForCausalLM(config), config.vocab_size, **how)


def tiny(**how: Any) -> Shape:
    """For a look at whether all of it works."""
    config: Any = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return Shape("tiny", lambda: LlamaForCausalLM(config), config.vocab_size, **how)


def given(folder: Path, **how: Any) -> Shape:
    """The model in a directory."""

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )

    return Shape(folder.name, loaded, loaded().config.vocab_size, **how)


@dataclass
class Side:
    """One way to train. `flops` are those of the newest step's tokens; `stats` what the learner says of it."""

    step: Callable[[Sequence[RolloutGroup]], float]
    flops: Callable[[], float]
    trainer: Trainer | None = None
    stats: list[StepStats] = field(default_factory=list)


def recipe(shape: Shape, layout: str, *, compiled: bool, tf32: bool) -> LearnerRecipe:
    """A learner's as it comes, in one layout."""
    learner = {"layout": layout, "compile": compiled, "tokens_per_micro_batch": shape.tokens, "tf32": tf32}
    run = {"name": "benchmark", "model": "none", "steps": 1}
    return LearnerRecipe.model_validate({"run": run, "sampling": {"max_tokens": 512}, "learner": learner})


def sides(shape: Shape, device: torch.device) -> dict[str, Side]:
    """Those of the shape that can be had here."""
    names = [name for name in shape.sides if name != COMPILED or why_not(device) is None]
    return {
        name: _padded(shape, device, name) if name in (PADDED, SORTED) else _ours(shape, device, name) for name in names
    }


def peak_flops(device: torch.device) -> float | None:
    """What MFU is a share of; None where that is not known."""
    return peak(device, bfloat16=True)


def _made(shape: Shape, device: torch.device) -> Any:
    torch.manual_seed(0)
    return shape.make().to(device)


def _padded(shape: Shape, device: torch.device, name: str) -> Side:
    of = recipe(shape, "auto", compiled=False, tf32=True)
    module = _made(shape, device)
    trainer = PaddedTrainer(module, of, device, shape.rows, longest_first=name == SORTED)
    each, tokens = Flops.of(module).training, [0]

    def step(groups: Sequence[RolloutGroup]) -> float:
        tokens[0] = sum(len(g.prompt) + len(r.tokens) for g in groups for r in g.rollouts)
        return trainer.train(groups)

    return Side(step, lambda: each * tokens[0])


def _ours(shape: Shape, device: torch.device, name: str) -> Side:
    of = recipe(shape, LAYOUT[name], compiled=name == COMPILED, tf32=name != WHOLE)
    precision = "highest" if name == WHOLE or device.type == "cpu" else "high"
    trainer = Trainer(PolicyModel(_made(shape, device), of.learner, torch.float32, device), of)
    stats = list[StepStats]()

    def step(groups: Sequence[RolloutGroup]) -> float:
        torch.set_float32_matmul_precision(precision)  # is the process's, and sides take turns
        stats.append(trainer.train(groups, policy_version=0))
        return stats[-1].loss

    return Side(step, lambda: stats[-1].flops, trainer, stats)
