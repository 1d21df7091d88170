"""Attention within segments: every layout is a plain forward of each sequence alone, and nothing leaks between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from broker.errors import Refused
from broker.schema import RolloutGroup
from consumer.attention import segment_attention
from consumer.pack import Layout, MicroBatch, pack
from consumer.segments import ALONE, Segments
from consumer.sheet import Sheet
from tests.consumer.allocations import Allocations
from tests.consumer.groups import VOCABULARY, gpt2, llama, policy_model, random_groups, recipe

LAYOUTS: list[Layout] = ["packed", "shared_prompt", "padded"]
GROUPS = random_groups(5)
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def qwen2() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SMALL))


def qwen3() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16))


def mistral() -> Any:
    """All layers look back five tokens at most, fewer than most sequences have."""
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5))


def qwen_of_two_kinds() -> Any:
    """Its first layer sees everything, its second has a window."""
    made = Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert made.layer_types == ["full_attention", "sliding_attention"]
    return Qwen2ForCausalLM(made)


def seeded(build: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build()


def packed(groups: Sequence[RolloutGroup], layout: Layout, budget: int = 10**6, pad: int = 0) -> list[MicroBatch]:
    return pack(groups, Sheet.of(groups).starts.tolist(), budget, layout, pad)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def weighted(logprobs: Tensor, places: Tensor) -> Tensor:
    """A loss in which no two tokens count the same."""
    return (logprobs * torch.sin(places + 1.0)).sum()


def one_at_a_time(module: Any) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) and gradient (D,), each sequence through transformers' own forward, by its own attention."""
    out, place = [], 0
    for group in GROUPS:
        for rollout in group.rollouts:
            ids = torch.from_numpy(np.concatenate([group.prompt, rollout.tokens]).astype(np.int64))
            logits = module(input_ids=ids[None], use_cache=False).logits[0, len(group.prompt) - 1 : -1]
            logprobs = torch.log_softmax(logits, -1).gather(1, ids[len(group.prompt) :, None])[:, 0]
            weighted(logprobs, torch.arange(place, place + len(logprobs))).backward()
            out.append(logprobs.detach())
            place += len(logprobs)
    return torch.cat(out), flat(module)


def through(module: Any, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
    """The same from the policy model."""
    model = policy_model(module)
    found: dict[int, Tensor] = {}
    for batch in batches:
        logprobs, _ = model.logprobs(batch, 1.0)
        weighted(logprobs, batch.tokens).backward()
        found |= zip(batch.tokens.tolist(), logprobs.detach(), strict=True)
    return torch.stack([found[row] for row in range(len(found))]), flat(module)


@pytest.mark.parametrize("budget", [1, 60, 10**6])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("build", "tolerance"),
    [(gpt2, 1e-12), (llama, 1e-5), (qwen2, 1e-5), (qwen3, 1e-5), (mistral, 1e-5), (qwen_of_two_kinds, 1e-5)],
)
def test_every_layout_is_a_plain_forward_of_each_sequence_alone(
    build: Any, tolerance: float, layout: Layout, budget: int
) -> None:
    expected, gradient = one_at_a_time(seeded(build))
    found, own_gradient = through(seeded(build), packed(GROUPS, layout, budget, pad=3))
    assert ((found - expected).abs() <= tolerance * expected.abs() + tolerance * (tolerance > 1e-9)).all()
    assert (own_gradient - gradient).abs().max() <= tolerance * gradient.abs().max()


def test_a_window_is_what_makes_the_difference() -> None:
    """Otherwise the cases with a window would show nothing."""
    narrow, wide = seeded(mistral), seeded(lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)))
    wide.load_state_dict(narrow.state_dict())
    assert not torch.allclose(one_at_a_time(narrow)[0], one_at_a_time(wide)[0], atol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_in_one_sequence_is_nothing_to_another(layout: Layout) -> None:
    """Other tokens in one completion: its own log-probs change, all others are the same to the bit."""
    victim, at = GROUPS[1], 2
    rollouts = list(victim.rollouts)
    rollouts[at] = replace(rollouts[at], tokens=(rollouts[at].tokens + 1) % VOCABULARY)
    changed = [GROUPS[0], replace(victim, rollouts=tuple(rollouts)), *GROUPS[2:]]
    before, after = (through(seeded(llama), packed(groups, layout))[0] for groups in (GROUPS, changed))
    own = Sheet.of(GROUPS).sequences == len(GROUPS[0].rollouts) + at
    assert torch.equal(before[~own], after[~own])
    assert not (before[own] == after[own]).any()


def test_no_mask_and_no_scores_of_a_whole_row_are_ever_made() -> None:
    for layout in ("packed", "shared_prompt"):
        (batch,) = packed(GROUPS, layout)
        assert batch.segments is not None
        row, (queries, keys) = batch.padded_tokens, batch.segments.longest
        module = llama()
        model = policy_model(module, recipe({"logit_chunk": 8}))
        with Allocations() as seen:
            model.logprobs(batch, 1.0)[0].sum().backward()
        most = max(4 * queries * keys, row * 48, VOCABULARY * 32)  # scores of a segment, a layer's widest, the table
        assert seen.largest <= most < row * row


def test_not_even_a_single_sequence_has_a_mask_of_its_row() -> None:
    segments = Segments.of([64], [ALONE])
    query, key, value = (torch.randn(1, 2, 64, 8, requires_grad=True) for _ in range(3))
    with Allocations() as seen:
        segment_attention(nn.Module(), query, key, value, None, segments=segments)[0].sum().backward()
    assert seen.largest < 64 * 64


def test_gradients_of_segments_are_those_of_one_masked_attention() -> None:
    """Every tensor's, in float64, prompts shared and not, with as many queries a key head as the model likes."""
    segments = Segments.of([4, 3, 5, 6, 1, 2], [ALONE, 0, 0, ALONE, 3, ALONE])
    row = sum(segments.lengths)
    number = np.repeat(np.arange(6), segments.lengths)
    prompt = np.array(segments.prompts)[number]
    mask = torch.from_numpy(((number[:, None] == number) & np.tri(row, dtype=bool)) | (prompt[:, None] == number))
    generator = torch.Generator().manual_seed(2)
    shapes = [(1, 4, row, 8), (1, 2, row, 8), (1, 2, row, 8)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    query, key, value = inputs
    ours, _ = segment_attention(nn.Module(), query, key, value, None, scaling=0.3, segments=segments)
    theirs = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_what_kernels_of_variable_length_are_told_says_the_same_as_lengths_and_prompts() -> None:
    segments = Segments.of([4, 3, 5, 2], [ALONE, 0, 0, ALONE])
    assert segments.query_ends.tolist() == [0, 4, 7, 12, 14]
    assert segments.keys is not None
    ends = segments.key_ends.tolist()
    seen = [segments.keys[a:b].tolist() for a, b in pairwise(ends)]
    prompt = [0, 1, 2, 3]
    assert seen == [prompt, [*prompt, 4, 5, 6], [*prompt, 7, 8, 9, 10, 11], [12, 13]]
    assert segments.longest == (5, 9)
    assert segments.query_ends.dtype == segments.key_ends.dtype == torch.int32
    alone = Segments.of([4, 3], [ALONE, ALONE])
    assert alone.keys is None
    assert torch.equal(alone.key_ends, alone.query_ends)


# -- what is not served ----------------------------------------------------------------------------------------------


def test_softcaps_and_sinks_are_refused_by_name() -> None:
    with pytest.raises(Refused, match="attn_logit_softcapping"):
        policy_model(Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=None)))
    with pytest.raises(Refused, match="attention sinks"):
        policy_model(GptOssForCausalLM(GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1)))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_a_layer_asks_for_and_does_not_get_is_refused_by_name(name: str) -> None:
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(Refused, match=name):
        segment_attention(nn.Module(), tensor, tensor, tensor, None, **{name: 1.0})


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)).double()


def test_a_model_whose_attention_is_its_own_is_padded() -> None:
    assert policy_model(seeded(bloom)).layout == "padded"
    assert policy_model(llama()).layout == "auto"
    expected, gradient = one_at_a_time(seeded(bloom))
    found, own_gradient = through(seeded(bloom), packed(GROUPS, "padded"))
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(own_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_a_model_with_layers_of_another_kind_is_padded() -> None:
    """A recurrent layer would carry its state from one sequence of a row into the next."""
    module = llama()
    module.config.layer_types = ["full_attention", "linear_attention"]
    assert policy_model(module).layout == "padded"


def test_such_a_model_is_not_packed_by_force() -> None:
    with pytest.raises(Refused, match=r"learner\.layout = 'packed' and BloomForCausalLM"):
        policy_model(seeded(bloom), recipe({"layout": "packed"}))
