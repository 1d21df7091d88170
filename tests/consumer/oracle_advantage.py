"""Advantages once more, slowly: one group after the other, in Python floats, straight from the definitions.

Invariant: nothing of the learner's computations is used, and no array either. Refuses to know log-probs: what a KL
costs is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from consumer.objective.settings import ObjectiveSettings

Floats = Sequence[float]


def advantages(rewards: Floats) -> list[float]:
    """What a completion got, less the mean of what the *others* got."""
    return [reward - mean([*rewards[:i], *rewards[i + 1 :]]) for i, reward in enumerate(rewards)]


def of_batch(
    rewards: Floats, groups: Sequence[int], components: Sequence[Mapping[str, float]], of: ObjectiveSettings
) -> list[float]:
    """A of each completion (S,); `groups` (S,) says which group it is of. Whitening by tokens: `whitened`."""
    out = []
    for _, members in groupby(range(len(rewards)), key=lambda s: groups[s]):
        chosen = list(members)
        if of.scale == "gdpo":
            out += _gdpo([components[s] for s in chosen], of)
        else:
            out += _group([rewards[s] for s in chosen], of)
    if of.scale in ("batch_std", "gdpo"):
        spread = deviation(out, of.std_ddof)
        out = [a / (spread + of.std_eps) if spread > 0 else 0.0 for a in out]
    return out


def whitened(returns: Floats, of: ObjectiveSettings) -> list[float]:
    """(R − mean)/(sample std + ε) over the tokens of a batch that count."""
    spread = deviation(returns, 1)
    return [(r - mean(returns)) / (spread + of.std_eps) if spread > 0 else 0.0 for r in returns]


def overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's equation 13, case by case."""
    if length <= limit - buffer:
        return 0.0
    return (limit - buffer - length) / buffer if length <= limit else -1.0


def mean(values: Floats) -> float:
    """0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def deviation(values: Floats, ddof: int) -> float:
    """Standard deviation; exactly 0 of fewer than two and of equal ones."""
    if len(set(values)) < 2:
        return 0.0
    return math.sqrt(math.fsum((v - mean(values)) ** 2 for v in values) / (len(values) - ddof))


def _group(rewards: Floats, of: ObjectiveSettings) -> list[float]:
    centre = mean(rewards)
    if of.baseline == "none":
        return list(rewards)
    if len(set(rewards)) < 2:
        return [0.0 for _ in rewards]
    off = advantages(rewards) if of.baseline == "leave_one_out" else [r - centre for r in rewards]
    if of.scale == "group_std":
        return [a / (deviation(rewards, of.std_ddof) + of.std_eps) for a in off]
    if of.scale == "group_mean":
        return [a / centre if centre > 0 else 0.0 for a in off]
    return off


def _gdpo(components: Sequence[Mapping[str, float]], of: ObjectiveSettings) -> list[float]:
    out = [0.0 for _ in components]
    for name in of.gdpo_weights or {name: 1.0 for one in components for name in one}:
        values = [one.get(name, 0.0) for one in components]
        spread = deviation(values, of.std_ddof)
        for i, value in enumerate(values):
            if spread > 0:
                out[i] += of.gdpo_weights.get(name, 1.0) * (value - mean(values)) / (spread + of.std_eps)
    return out
