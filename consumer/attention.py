"""Attention within the segments of a packed row, as transformers calls it.

Invariant: the mask of a whole row never exists; what a segment costs depends on its own length and its prompt's.
Refuses to know tokens, positions and the model's other layers.

Registered with transformers' `AttentionInterface` and with no mask function beside it, for which transformers builds
no mask; outside the graphs of a compiled layer, which would be made anew for every set of lengths. On CUDA in half
precision a kernel of variable length takes all segments at once; elsewhere each is a call of
`scaled_dot_product_attention`. There is no dropout here: the policy that learns is the one that samples.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from broker.errors import Refused
from consumer.segments import ALONE, Segments

NAME = "headrace_segments"
# What a model's configuration may ask of attention, and what of its layer types is served.
UNSERVED = ("attn_logit_softcapping", "attention_chunk_size")
SERVED_LAYERS = {"full_attention", "sliding_attention"}


def install(module: Any) -> bool:
    """Let a transformers model attend through segments; False where it cannot, and its own attention stays.

    Raises `Refused` for attention that also its own implementation would get wrong, or not compute at all.
    """
    config = module.config
    for name in UNSERVED:
        if getattr(config, name, None) is not None:
            raise Refused(f"the model's configuration sets {name}", "its attention is not supported; use another model")
    if any(name.rpartition(".")[2] == "sinks" for name, _ in module.named_parameters()):
        raise Refused("the model has attention sinks", "its attention is not supported; use another model")
    if not getattr(module, "_supports_attention_backend", False):
        return False
    if not set(getattr(config, "layer_types", None) or ()) <= SERVED_LAYERS:
        return False
    module.set_attn_implementation(NAME)
    return bool(config._attn_implementation == NAME)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def segment_attention(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Queries (R, H, T, D), keys and values (R, H_kv, T, D) → (R, T, H, D).

    Without `segments` each row is one sequence, its queries the last of its keys. A query sees at most the last
    `sliding_window` keys, its own included. Raises `Refused` for an extra that is not served.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise Refused(f"the model's attention uses {name}", "which is not supported; use another model")
    if segments is None:
        out = _attend(query, key, value, scaling, sliding_window, attention_mask)
    elif _kernel(query) is not None:
        out = _all_at_once(query, key, value, segments, scaling, sliding_window)
    else:
        out = _one_by_one(query, key, value, segments, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    # A split has one gradient for all its parts; as many slices would each have one of the whole row's size.
    lengths = list(segments.lengths)
    queries, keys, values = query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)
    out = []
    for q, k, v, prompt in zip(queries, keys, values, segments.prompts, strict=True):
        if prompt != ALONE:
            k, v = torch.cat([keys[prompt], k], 2), torch.cat([values[prompt], v], 2)
        out.append(_attend(q, k, v, scaling, window))
    return torch.cat(out, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The queries (…, T, D) are the last of the keys (…, K, D), in causal order. `mask` overrides that."""
    queries, keys = query.shape[2], key.shape[2]
    windowed = window is not None and window < keys
    if mask is None and (windowed or 1 < queries < keys):
        seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        mask = seen.triu(keys - queries - window + 1) if windowed and window is not None else seen
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and queries > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _all_at_once(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    """With fewer queries than keys, flash attention's causal order is that of the last queries (2.1 and newer)."""
    kernel = _kernel(query)
    assert kernel is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D)
    if segments.keys is not None:
        # Through fp32, so that the gradients of a prompt's keys are summed there and rounded once.
        k, v = (x.float().index_select(0, segments.keys).to(x.dtype) for x in (k, v))
    most_queries, most_keys = segments.longest
    out: Tensor = kernel(
        q,
        k,
        v,
        segments.query_ends,
        segments.key_ends,
        most_queries,
        most_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return out.transpose(0, 1)[None]


def _kernel(query: Tensor) -> Callable[..., Any] | None:
    """The kernel of variable length, where there is one for such queries."""
    size = query.shape[-1]
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16) or size > 256 or size % 8:
        return None
    return _varlen() if torch.cuda.get_device_capability(query.device) >= (8, 0) else None


@cache
def _varlen() -> Callable[..., Any] | None:
    """`varlen_attn` of torch 2.11 or newer; later ones have to be told of grouped queries, those before are not."""
    try:
        varlen: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:  # torch 2.9 and older
        return None
    names = inspect.signature(varlen).parameters
    if "window_size" not in names:  # torch 2.10: causal order is another argument
        return None
    if "enable_gqa" not in names:
        return varlen
    return lambda *tensors, **options: varlen(*tensors, enable_gqa=True, **options)


AttentionInterface.register(NAME, segment_attention)
