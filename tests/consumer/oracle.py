"""The objective once more, slowly: one token and one sequence at a time, in Python floats, straight from the formulas.

Invariant: nothing of the learner's computations is used here, not even its way of counting; only its settings are read.
The gradient is in closed form. Refuses to know tensors on their way through a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from broker.schema import RolloutGroup
from consumer.objective.settings import ObjectiveSettings
from tests.consumer import oracle_advantage
from tests.consumer.oracle_advantage import advantages
from tests.consumer.oracle_surrogate import Line, gain, held, kl
from tests.consumer.oracle_weight import Answer, weigh

__all__ = ["Answer", "Logprobs", "Outcome", "advantages", "answers_of", "logprobs_of", "objective"]

Logprobs = list[list[list[float]]]  # [group][rollout][token]


@dataclass
class Outcome:
    """All of it flat (N,), token by token in the order of the answers; `by_entropy` is ∂loss/∂H."""

    loss: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    by_entropy: list[float] = field(default_factory=list)
    clipped: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)

    @property
    def total(self) -> float:
        return math.fsum(self.loss)


def objective(answers: Sequence[Answer], of: ObjectiveSettings, *, limit: int, minibatches: int = 1) -> Outcome:
    """loss_t = −c·w/divisor·(gain − β·KL + η·H) and its derivatives.

    Group i is of minibatch i mod m; π stands where `logprobs` say in all of them.
    """
    for answer in answers:
        answer.seen = not (of.overlong == "filter" and answer.truncated)
    _advantages(answers, of, limit)
    found: dict[int, Outcome] = {}
    for number in range(minibatches):
        part = [a for a in answers if a.group % minibatches == number]
        divisor = weigh(part, of, number / minibatches)
        for answer in part:
            found[id(answer)] = _answer(answer, _coefficient(answer, part, of, limit) / divisor, of)
    whole = Outcome()
    for answer in answers:
        for name, values in vars(found[id(answer)]).items():
            getattr(whole, name).extend(values)
    return whole


def _answer(answer: Answer, coefficient: float, of: ObjectiveSettings) -> Outcome:
    length, out = answer.length, Outcome()
    if not answer.seen or not length:
        nothing, never = [0.0] * length, [False] * length
        return Outcome(nothing, nothing, nothing, never, never, never)
    line = Line(answer.logprobs, answer.proximal, answer.behaviour, answer.gains)
    gained, shares = gain(line, of), [coefficient * w for w in answer.weights]
    for t, share in enumerate(shares):
        cost, pull = kl(answer.logprobs[t], answer.proximal[t], answer.reference[t], of)
        value = gained.value[t] - of.kl_coefficient * cost + of.entropy_bonus * answer.entropy[t]
        out.loss.append(-share * value)
        slope = math.fsum(shares[s] * gained.slope[s][t] for s in range(length))
        out.gradient.append(-(slope - share * of.kl_coefficient * pull))
        out.by_entropy.append(-share * of.entropy_bonus)
    capped = [c and not m for c, m in zip(gained.capped, answer.masked, strict=True)]
    out.truncated = [c or t for c, t in zip(capped, answer.truncations, strict=True)]
    out.clipped, out.masked = gained.clipped, answer.masked
    return out


def _advantages(answers: Sequence[Answer], of: ObjectiveSettings, limit: int) -> None:
    """Fills in `gains`."""
    rewards, costs = [], []
    for answer in answers:
        cost = [0.0] * answer.length
        if of.kl.startswith("k1_reward") and answer.seen:
            k1 = [of.kl_coefficient * held(x - r) for x, r in zip(answer.anchor, answer.reference, strict=True)]
            cost = [math.fsum(k1[t:]) for t in range(len(k1))]
        reward = answer.reward
        if of.overlong == "soft":
            reward += oracle_advantage.overlong(answer.length, limit, of.overlong_buffer)
        if of.kl == "k1_reward":
            reward, cost = reward - (cost[0] if cost else 0.0), [0.0] * answer.length
        rewards.append(reward)
        costs.append(cost)
    gains = oracle_advantage.of_batch(rewards, [a.group for a in answers], [a.components for a in answers], of)
    for answer, whole, cost in zip(answers, gains, costs, strict=True):
        answer.gains = [whole - c for c in cost]
    if of.scale == "batch_whiten":
        returns = [g for a in answers if a.seen for g in a.gains]
        white = iter(oracle_advantage.whitened(returns, of))
        for answer in answers:
            answer.gains = [next(white) if answer.seen else 0.0 for _ in answer.gains]


def _coefficient(answer: Answer, part: Sequence[Answer], of: ObjectiveSettings, limit: int) -> float:
    """c of each token of `answer`: what it counts for in its minibatch. 1 where nothing of it is counted, and so
    nothing has a weight."""

    def count(one: Answer) -> int:
        return one.length if of.denominator == "before" else one.seen * one.masked.count(False)

    sequences = sum(count(a) > 0 for a in part)
    if count(answer) == 0:
        return 1.0
    if of.aggregation == "token_mean":
        return 1 / sum(count(a) for a in part)
    if of.aggregation == "sequence_mean":
        return 1 / (sequences * count(answer))
    if of.aggregation == "constant":
        return 1 / (sequences * (of.constant_length or limit))
    prompts = {a.group for a in part if count(a) > 0}
    return 1 / (len(prompts) * sum(count(a) for a in part if a.group == answer.group))


def answers_of(
    groups: Sequence[RolloutGroup],
    logprobs: Logprobs,
    anchor: Logprobs | None = None,
    reference: Logprobs | None = None,
    entropy: Logprobs | None = None,
    version: int = 0,
) -> list[Answer]:
    """The answers of a batch at policy `version`. `anchor` None: it is π itself; the others None: zeros."""
    out = []
    for g, group in enumerate(groups):
        for i, r in enumerate(group.rollouts):
            ages = [version - span.policy_version for span in r.spans for _ in range(span.start, span.end)]
            zeros = [0.0] * len(r.tokens)
            now = logprobs[g][i]
            start, far, spread = (
                other if c is None else c[g][i] for c, other in ((anchor, now), (reference, zeros), (entropy, zeros))
            )
            behaviour = [float(m) for m in r.behaviour_logprobs]
            out.append(Answer(g, r.reward, now, start, behaviour, far, spread, ages, dict(r.components), r.truncated))
    return out


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
