"""From hidden states to log-probs and entropies, a chunk of tokens at a time.

Invariant: the logits of one chunk exist at once, in backward too, where they are computed again; the result is that of
all at once. Refuses to know sequences, layouts and the model's body.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Of the logits of a chunk, where its size is not given. Each chunk is also a pass over the gradient of the head's
# weights, which on a GPU costs more than the product does.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}

Head = Callable[[Tensor], Tensor]


def chosen_logprobs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    *,
    entropy: bool = False,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) of `targets` (N,) after hidden states (N, D), and entropies (N,) in nats, under a temperature.

    `chunk` tokens have logits at once; the entropies have a gradient only where `entropy` asks for one. `compiled`:
    torch makes a few passes over the logits of what would be twenty.
    """
    of_chunk = _compiled() if compiled else _of_chunk
    if len(targets) <= chunk:
        return of_chunk(head, hidden, targets, temperature, entropy)
    size = -(-len(targets) // -(-len(targets) // chunk))  # of even chunks, no remainder of a few tokens
    parts = [
        checkpoint(
            of_chunk, head, h, t, temperature, entropy, use_reentrant=False, preserve_rng_state=False
        )
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]  # fmt: skip
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def chunk_for(vocabulary: int, device: str = "cpu") -> int:
    """Tokens whose logits in fp32 fill `CHUNK_BYTES` of such a device."""
    return max(1, CHUNK_BYTES[device] // (vocabulary * 4))


def _of_chunk(head: Head, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    logits = head(hidden)  # (C, V)
    if temperature != 1.0:
        logits = logits / temperature
    differentiable = entropy and torch.is_grad_enabled()
    if differentiable or torch.compiler.is_compiling():
        normaliser, chosen = torch.logsumexp(logits, -1), logits.gather(1, targets[:, None])[:, 0]
        with torch.set_grad_enabled(differentiable):
            spread = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
        return chosen - normaliser, spread
    logprobs, normaliser = _Chosen.apply(logits, targets)  # type: ignore[no-untyped-call]
    with torch.no_grad():  # after all that a gradient needs: what is computed again for one ends before this
        return logprobs, normaliser - torch.softmax(logits, -1).mul_(logits).sum(-1)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    """For chunks of any length."""
    return torch.compile(_of_chunk, dynamic=True)


class _Chosen(torch.autograd.Function):
    """(C, V), (C,) → log softmax at the targets, and the normalisers, which have no gradient.

    g·(1[target] − softmax) is made in the place of the logits, which nobody needs after it: bit by bit what autograd
    makes of logsumexp and gather, with five arrays (C, V) fewer.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        normaliser = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, normaliser, targets)
        ctx.mark_non_differentiable(normaliser)
        return logits.gather(1, targets[:, None])[:, 0] - normaliser, normaliser

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, normaliser, targets = ctx.saved_tensors
        out = logits.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
        return out.scatter_add_(1, targets[:, None], gradient[:, None]), None
