"""Weights of tokens once more, slowly: proximal policy, behaviour correction, filters, what they are averaged to.

Invariant: every bound is put to a ratio π/μ that was formed here, never to its inverse. Refuses to know what is
weighted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from consumer.objective.settings import ObjectiveSettings
from tests.consumer.oracle_advantage import mean
from tests.consumer.oracle_surrogate import held


@dataclass
class Answer:
    """A completion of L tokens with what is known of each (L,); `seen` False: it is masked, and no number of it
    matters. `gains`, `dropped`, `weights` … are filled in on the way."""

    group: int
    reward: float
    logprobs: list[float]
    anchor: list[float]
    behaviour: list[float]
    reference: list[float]
    entropy: list[float]
    ages: list[int]
    components: dict[str, float] = field(default_factory=dict)
    truncated: bool = False
    seen: bool = True
    gains: list[float] = field(default_factory=list)
    proximal: list[float] = field(default_factory=list)
    dropped: list[bool] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    truncations: list[bool] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.behaviour)


def weigh(part: Sequence[Answer], of: ObjectiveSettings, progress: float) -> float:
    """Fills in `proximal` … `masked` of the answers of a minibatch; what its weights are to be divided by."""
    _second_moment(part, of.m2po)
    for answer in part:
        answer.proximal = _proximal(answer, of, progress)
        _answer(answer, of)
    if not of.normalise_weights:
        return 1.0
    seen = [a.weights for a in part if a.seen and a.length]
    if of.correction in ("sequence", "geometric"):
        divisor = mean([mean(weights) for weights in seen])
    else:
        divisor = mean([w for weights in seen for w in weights])
    return divisor if divisor > 0 else 1.0


def _proximal(answer: Answer, of: ObjectiveSettings, progress: float) -> list[float]:
    if not answer.seen:
        return [0.0] * answer.length
    if of.proximal == "behaviour":
        return answer.behaviour
    if of.proximal == "recompute":
        return answer.anchor
    out = []
    for x, m, age in zip(answer.logprobs, answer.behaviour, answer.ages, strict=True):
        share = age / (age + progress) if age + progress > 0 else 1.0  # how far from μ to π the batch started
        out.append((1 - share) * m + share * x)
    return out


def _answer(answer: Answer, of: ObjectiveSettings) -> None:
    length = answer.length
    answer.weights, answer.truncations, answer.masked = [0.0] * length, [False] * length, [False] * length
    if not answer.seen:
        return
    given_up = of.veto is not None and any(
        math.exp(x - m) < of.veto for x, m in zip(answer.anchor, answer.behaviour, strict=True)
    )
    lag = mean([m - x for x, m in zip(answer.anchor, answer.behaviour, strict=True)])
    for t in range(length):
        ratio = math.exp(held(_log_ratio(answer, t, of.correction)))
        off_policy = of.off_policy_mask is not None and answer.gains[t] < 0 and lag > of.off_policy_mask
        masked = given_up or off_policy or answer.dropped[t]
        if of.correction != "none" and of.correction_bound == "mask":
            masked |= not of.mask_low <= ratio <= of.mask_high
        capped = of.correction != "none" and of.correction_bound == "truncate" and ratio > of.truncation
        answer.masked[t], answer.truncations[t] = masked, capped and not masked
        answer.weights[t] = 0.0 if masked else of.truncation if capped else ratio


def _log_ratio(answer: Answer, t: int, level: str) -> float:
    """log π_prox/μ of token t, or of what it belongs to."""
    off = [p - m for p, m in zip(answer.proximal, answer.behaviour, strict=True)]
    if level == "token":
        return off[t]
    if level == "prefix":
        return math.fsum(off[: t + 1])
    if level == "sequence":
        return math.fsum(off)
    return math.fsum(off) / len(off) if level == "geometric" else 0.0


def _second_moment(part: Sequence[Answer], limit: float | None) -> None:
    """M2PO: the worst harmful tokens go, one (and its equals) after the other, until the rest is calm enough."""
    for answer in part:
        answer.dropped = [False] * answer.length
    if limit is None:
        return
    worst = []
    for answer in part:
        for t in range(answer.length if answer.seen else 0):
            off = answer.anchor[t] - answer.behaviour[t]
            if (answer.gains[t] > 0 and off > 0) or (answer.gains[t] < 0 and off < 0):
                worst.append((abs(off), answer, t))
    while worst and mean([size**2 for size, _, _ in worst]) > limit:
        most = max(size for size, _, _ in worst)
        for _, answer, t in [w for w in worst if w[0] == most]:
            answer.dropped[t] = not 0.7 <= math.exp(held(answer.anchor[t] - answer.behaviour[t])) <= 1.5
        worst = [w for w in worst if w[0] != most]
