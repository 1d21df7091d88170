"""The tokens an objective is taken over: whole sequences, flat, with what was true of each token.

Invariant: a token outside the mask has no part in anything, whatever its log-probs are: NaN and −inf behind a zero mask
never meet an arithmetic operation. Refuses to know layouts, models and devices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0  # e^20: beyond it a ratio is no evidence any more, only an overflow in waiting


@dataclass(frozen=True)
class Tokens:
    """N tokens of whole sequences, those of a sequence in order; every tensor (N,).

    `logprobs` log π, the only one that is ever differentiated; `anchor` log π at the start of the batch, `behaviour`
    log μ; `advantages`; `staleness` in versions; `sequences` a number in 0 … S−1 each; `mask` bool; `dropped` bool:
    what a look at the whole batch has left without weight.
    """

    logprobs: Tensor
    anchor: Tensor
    behaviour: Tensor
    advantages: Tensor
    staleness: Tensor
    sequences: Tensor
    mask: Tensor
    dropped: Tensor

    def clean(self) -> Tokens:
        """The same with zeros outside the mask, and no gradient into anything but `logprobs`."""
        return replace(
            self,
            logprobs=torch.where(self.mask, self.logprobs, 0.0),
            anchor=torch.where(self.mask, self.anchor.detach(), 0.0),
            behaviour=torch.where(self.mask, self.behaviour.detach(), 0.0),
            advantages=torch.where(self.mask, self.advantages.detach(), 0.0),
        )


def held(log_ratio: Tensor) -> Tensor:
    """A log-ratio within ±20, so that its exponential stays finite."""
    return torch.clamp(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def importance_ratio(logprobs: Tensor, reference: Tensor) -> Tensor:
    """ρ = π/reference from log-probs, (N,) and (N,) → (N,); the log-ratio is held within ±20 to stay finite."""
    return torch.exp(held(logprobs - reference))


def total(values: Tensor, sequences: Tensor) -> Tensor:
    """Each token's sum over its sequence, (N,) → (N,). Differentiable."""
    if not len(values):
        return values
    sums = torch.zeros(int(sequences.max()) + 1, dtype=values.dtype, device=values.device)
    return sums.index_add(0, sequences, values)[sequences]


def mean(values: Tensor, tokens: Tokens) -> Tensor:
    """Each token's mean over the unmasked tokens of its sequence, (N,) → (N,); 0 where there are none."""
    mask = tokens.mask.to(values.dtype)
    return total(values * mask, tokens.sequences) / total(mask, tokens.sequences).clamp(min=1.0)


def running(values: Tensor, sequences: Tensor) -> Tensor:
    """Each token's sum over its sequence up to and including itself, (N,) → (N,). Not for gradients.

    The tokens of a sequence stand together and in order, so a running sum over all of them less what came before the
    sequence will do; in float64, where nothing is lost by that.
    """
    sums = torch.cumsum(values.double(), 0)
    first = torch.ones_like(sequences, dtype=torch.bool)
    first[1:] = sequences[1:] != sequences[:-1]
    start = torch.where(first, sums - values.double(), 0.0)  # what came before each sequence
    index = torch.cummax(torch.where(first, torch.arange(len(values), device=values.device), 0), 0).values
    return (sums - start[index]).to(values.dtype)


def to_go(values: Tensor, sequences: Tensor) -> Tensor:
    """Each token's sum over the rest of its sequence, itself included, (N,) → (N,). Not for gradients."""
    return total(values, sequences) - running(values, sequences) + values
