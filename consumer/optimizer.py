"""The optimizer a recipe asks for. Refuses to know gradients and schedules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from consumer.settings import LearnerSettings


def make_optimizer(parameters: Sequence[nn.Parameter], settings: LearnerSettings) -> torch.optim.Optimizer:
    """AdamW over `parameters`."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
