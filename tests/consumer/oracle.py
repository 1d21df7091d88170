"""The default objective once more, slowly: one token at a time, in Python floats, straight from the formulas.

Invariant: nothing of the learner's code is used here, not even its way of counting. Refuses to know tensors on their
way through a batch: log-probs come as nested lists [group][rollout][token].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from broker.schema import RolloutGroup

Logprobs = list[list[list[float]]]


class Objective(NamedTuple):
    """Clip bounds and the cap of the correction."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    truncation: float = 2.0


def advantages(rewards: Sequence[float]) -> list[float]:
    """What a completion got, less the mean of what the *others* got."""
    out = []
    for i, reward in enumerate(rewards):
        others = [other for j, other in enumerate(rewards) if j != i]
        out.append(reward - math.fsum(others) / len(others) if others else 0.0)
    return out


def token_loss(logprob: float, proximal: float, behaviour: float, advantage: float, objective: Objective) -> float:
    """−min(π_prox/μ, C)·min(ρA, clip(ρ)A), ρ = π/π_prox."""
    rho = math.exp(logprob - proximal)
    weight = min(math.exp(proximal - behaviour), objective.truncation)
    clipped = min(max(rho, 1 - objective.clip_low), 1 + objective.clip_high)
    return -weight * min(rho * advantage, clipped * advantage)


def loss(
    groups: Sequence[RolloutGroup],
    logprobs: Logprobs,
    proximal: Logprobs | None = None,
    objective: Objective = Objective(),
) -> float:
    """Mean of `token_loss` over all completion tokens of all groups. `proximal` None: π_prox = π."""
    terms = []
    for g, group in enumerate(groups):
        gains = advantages([rollout.reward for rollout in group.rollouts])
        for i, rollout in enumerate(group.rollouts):
            for t in range(len(rollout.tokens)):
                logprob, behaviour = logprobs[g][i][t], float(rollout.behaviour_logprobs[t])
                anchor = logprob if proximal is None else proximal[g][i][t]
                terms.append(token_loss(logprob, anchor, behaviour, gains[i], objective))
    return math.fsum(terms) / len(terms)


def logprobs_of(module: Any, groups: Sequence[RolloutGroup], temperature: float = 1.0) -> Logprobs:
    """Every completion by itself behind its prompt, nothing shared, nothing padded; the softmax in numpy."""
    return [[_completion(module, group.prompt, r.tokens, temperature) for r in group.rollouts] for group in groups]


def _completion(module: Any, prompt: Any, tokens: Any, temperature: float) -> list[float]:
    ids = torch.tensor([[*prompt.tolist(), *tokens.tolist()]])
    with torch.no_grad():
        logits = module(input_ids=ids, use_cache=False).logits[0].double().numpy() / temperature  # (P + T, V)
    out = []
    for t, token in enumerate(tokens):
        row = logits[len(prompt) + t - 1]
        out.append(float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum())))
    return out
