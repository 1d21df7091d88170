"""Behaviour correction: the weight that pays for tokens having been sampled by an older policy.

Invariant: the weight is never differentiated. Refuses to know the surrogate that it multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consumer.objective.surrogate import importance_ratio


def truncated_token_weight(proximal_logprobs: Tensor, behaviour_logprobs: Tensor, truncation: float) -> Tensor:
    """min(π_prox/μ, C) per token, (N,), detached. Hilton et al. 2022 (decoupled); Espeholt et al. 2018 (truncated)."""
    ratio = importance_ratio(proximal_logprobs.detach(), behaviour_logprobs.detach())
    return torch.clamp(ratio, max=truncation)
