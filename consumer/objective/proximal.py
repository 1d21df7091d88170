"""The proximal policy: what PPO's ratio is taken against, and up to where the behaviour correction pays.

Invariant: it is never differentiated. Refuses to know what is done with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consumer.objective.axes import Proximal
from consumer.objective.tokens import Tokens


def proximal_logprobs(tokens: Tokens, kind: Proximal, progress: float) -> Tensor:
    """log π_prox (N,), detached. `progress` in [0, 1) is how much of the step's updates were made before this one.

    `recompute`: π at the start of the batch (decoupled PPO: Hilton et al. 2022, AReaL, Fu et al. 2025). `behaviour`: μ.
    `loglinear`: log μ + α(log π − log μ), without a forward pass of its own (A-3PO 2025): policies are taken to lie
    evenly on a line, μ `staleness` versions back, π `progress` ahead of the start of the batch.
    """
    if kind == "behaviour":
        return tokens.behaviour.detach()
    if kind == "recompute":
        return tokens.anchor.detach()
    age = tokens.staleness.to(tokens.behaviour.dtype)
    alpha = torch.where(age + progress > 0, age / (age + progress).clamp(min=1e-12), 1.0)
    return tokens.behaviour.detach() + alpha * (tokens.logprobs.detach() - tokens.behaviour.detach())
