"""KL to a reference model, by estimators whose *gradient* is known, not only their value.

Let r = π_ref/π and d = log π − log π_ref at a token that π sampled. In expectation over π:
k1 = d has KL's value and no gradient as a loss, so it belongs into the reward; k2 = d²/2 has the gradient of the
(reverse) KL(π‖π_ref) with the states held fast; k3 = r − 1 + d has KL's value and the gradient of the *forward*
KL(π_ref‖π); k3 times a ratio that is differentiated has that of the reverse KL again.

Invariant: no gradient reaches the reference. Refuses to clip at 0: max(k1, 0) is large where KL is small.
Schulman 2020; Tang & Munos 2025; DeepSeek-V3.2 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consumer.objective.axes import Kl
from consumer.objective.tokens import Tokens, held, importance_ratio, to_go, total


def penalty(kind: Kl, tokens: Tokens, proximal: Tensor, reference: Tensor) -> Tensor:
    """KL_t (N,) as part of the loss; zeros where it is none or in the reward. `reference` log π_ref (N,)."""
    if kind not in ("k2", "k3", "k3_ratio"):
        return torch.zeros_like(tokens.logprobs)
    off = held(tokens.logprobs - torch.where(tokens.mask, reference.detach(), 0.0))
    if kind == "k2":
        return off**2 / 2
    k3 = torch.exp(-off) - 1 + off
    return k3 if kind == "k3" else importance_ratio(tokens.logprobs, proximal) * k3


@torch.no_grad()
def in_reward(kind: Kl, anchor: Tensor, reference: Tensor, mask: Tensor, sequences: Tensor) -> Tensor:
    """What k1 takes off the reward before the coefficient, (N,): the sequence's sum of it, or what of it is to come."""
    off = torch.where(mask, held(anchor - reference), 0.0)
    return to_go(off, sequences) if kind == "k1_reward_to_go" else total(off, sequences)
