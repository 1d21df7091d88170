"""From hidden states to log-probs and entropies, a chunk of tokens at a time.

Invariant: the logits of one chunk exist at once, in backward too, where they are computed again; the result is that of
all at once. Refuses to know sequences, layouts and the model's body.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 128 << 20  # of the logits of a chunk, where its size is not given

Head = Callable[[Tensor], Tensor]


def chosen_logprobs(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float, chunk: int, *, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) of `targets` (N,) after hidden states (N, D), and entropies (N,) in nats, under a temperature.

    `chunk` tokens have logits at once; the entropies have a gradient only where `entropy` asks for one.
    """
    if len(targets) <= chunk:
        return _of_chunk(head, hidden, targets, temperature, entropy)
    size = -(-len(targets) // -(-len(targets) // chunk))  # of even chunks, no remainder of a few tokens
    parts = [
        checkpoint(
            _of_chunk, head, h, t, temperature, entropy, use_reentrant=False, preserve_rng_state=False
        )
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]  # fmt: skip
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def chunk_for(vocabulary: int, item_bytes: int = 4) -> int:
    """Tokens whose logits fill `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (vocabulary * item_bytes))


def _of_chunk(head: Head, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    logits = head(hidden)  # (C, V)
    if temperature != 1.0:
        logits = logits / temperature
    normaliser = torch.logsumexp(logits, -1)
    chosen = logits.gather(1, targets[:, None])[:, 0]
    with torch.set_grad_enabled(entropy and torch.is_grad_enabled()):
        spread = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
    return chosen - normaliser, spread
