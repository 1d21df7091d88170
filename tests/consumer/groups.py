"""What the learner's tests are made of: groups, recipes and models small enough to be looked at.

Invariant: everything is a function of its arguments; nothing reads a clock or global randomness.
Refuses to know what is tested with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from broker.schema import Rollout, RolloutGroup, VersionSpan
from broker.streams import Arrival
from consumer.model import DTYPES, PolicyModel
from consumer.settings import LearnerRecipe

VOCABULARY = 40
POSITIONS = 96


def rollout(
    tokens: Sequence[int] = (1,),
    reward: float = 0.0,
    *,
    logprobs: Sequence[float] | None = None,
    spans: Sequence[tuple[int, int, int]] = (),
    truncated: bool = False,
    **components: float,
) -> Rollout:
    """One completion, of version 0 unless `spans` (version, start, end) say otherwise."""
    behaviour = np.zeros(len(tokens), np.float32) if logprobs is None else np.array(logprobs, np.float32)
    parts = tuple(VersionSpan(*span) for span in spans or ((0, 0, len(tokens)),))
    return Rollout(np.array(tokens, np.int32), behaviour, parts, reward, components, truncated)


def group(ticket_id: str = "t0", rewards: Sequence[float] = (0.0, 1.0), version: int = 0) -> RolloutGroup:
    """The smallest group with these rewards, one token an answer, each another, sampled by `version`."""
    rollouts = tuple(rollout((1 + n,), reward, spans=[(version, 0, 1)]) for n, reward in enumerate(rewards))
    return RolloutGroup(ticket_id, "train", 0, np.array([1, 2], np.int32), rollouts)


def failed_group(ticket_id: str, reason: str = "nobody could serve it") -> RolloutGroup:
    """A tombstone."""
    return RolloutGroup(ticket_id, "train", 0, np.empty(0, np.int32), (), failed=reason)


def arrival(made: RolloutGroup, entry_id: bytes = b"1-1") -> Arrival:
    """A group as the stream hands it over."""
    return Arrival(entry_id, made.kind, made.ticket_id, made)


def random_groups(seed: int, count: int = 3, size: int = 4, longest: int = 12) -> list[RolloutGroup]:
    """Groups of random lengths, rewards and version spans, never degenerate.

    Behaviour log-probs lie around those of an untrained model (−log 40 = −3.7), far enough off for the weight π/μ to be
    truncated at some tokens and not at others.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(count):
        prompt = rng.integers(0, VOCABULARY, rng.integers(2, longest)).astype(np.int32)
        rewards = [*rng.choice([0.0, 0.25, 1.0], size - 2), 0.0, 1.0]
        made = tuple(_random_rollout(rng, int(rng.integers(1, longest)), float(r)) for r in rng.permutation(rewards))
        groups.append(RolloutGroup(f"t{number}", "train", number, prompt, made))
    return groups


def _random_rollout(rng: np.random.Generator, length: int, reward: float) -> Rollout:
    cut = int(rng.integers(0, length))
    spans = [(2, 0, cut), (3, cut, length)] if cut else [(3, 0, length)]
    tokens = rng.integers(0, VOCABULARY, length).tolist()
    return rollout(tokens, reward, logprobs=rng.uniform(-5.0, -2.7, length).tolist(), spans=spans)


def recipe(
    learner: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    temperature: float = 1.0,
    **run: Any,
) -> LearnerRecipe:
    """A recipe for a CPU with a gradient clip that never acts."""
    return LearnerRecipe.model_validate(
        {
            "run": {"name": "test", "model": "none", "steps": 3, **run},
            "sampling": {"max_tokens": 16, "temperature": temperature},
            "learner": {"device": "cpu", "max_grad_norm": 1e9, **(learner or {})},
            "objective": objective or {},
        }
    )


def gpt2(seed: int = 0, layers: int = 2) -> Any:
    """A GPT-2 in float64: alone among the common ones it computes in its own precision throughout."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=16, n_layer=layers, n_head=2, bos_token_id=None,
        eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
    )  # fmt: skip
    return _built(GPT2LMHeadModel, config, seed).double()


def llama(seed: int = 0) -> Any:
    """The family that is trained for real: rotary positions, tied head, float32."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _built(LlamaForCausalLM, config, seed)


def _built(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def policy_model(module: Any, of: LearnerRecipe | None = None) -> PolicyModel:
    """A model in the learner's hands."""
    of = of or recipe()
    return PolicyModel(module, of.learner, DTYPES[of.policy.dtype], torch.device("cpu"))
