"""Surrogates and KL once more, slowly: value and derivative of each token in closed form, case by case.

Invariant: no automatic and no numerical differentiation: the derivatives were taken by hand. Refuses to know weights,
coefficients and batches: one sequence at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from consumer.objective.settings import ObjectiveSettings

LARGEST = 20.0  # a log-ratio beyond it counts as this, and has no derivative
Floats = Sequence[float]


class Line(NamedTuple):
    """A sequence of L unmasked tokens: log π, log π_prox, log μ and A, each (L,)."""

    logprobs: Floats
    proximal: Floats
    behaviour: Floats
    gains: Floats


class Gain(NamedTuple):
    """`value` (L,), `slope` (L, L): ∂value_t/∂log π_i, `clipped` (L,), `capped` (L,): a weight held, not a gradient."""

    value: list[float]
    slope: list[list[float]]
    clipped: list[bool]
    capped: list[bool]


def held(log_ratio: float) -> float:
    """Within ±20."""
    return min(max(log_ratio, -LARGEST), LARGEST)


def live(log_ratio: float) -> float:
    """The derivative of `held`."""
    return 1.0 if abs(log_ratio) <= LARGEST else 0.0


def gain(line: Line, of: ObjectiveSettings) -> Gain:
    """What the surrogate makes of a sequence."""
    length = len(line.logprobs)
    if of.surrogate in ("gspo", "gmpo", "oapl") or (of.surrogate == "kimi" and of.ratio_level == "sequence"):
        return _whole(line, of)
    if of.surrogate == "topr" and of.ratio_level == "sequence":
        off = [math.fsum(x - p for x, p in zip(line.logprobs, line.proximal, strict=True))] * length
    else:
        off = [x - p for x, p in zip(line.logprobs, line.proximal, strict=True)]
    out = Gain([], [[0.0] * length for _ in range(length)], [], [])
    for t, (x, m, a) in enumerate(zip(line.logprobs, line.behaviour, line.gains, strict=True)):
        value, slope, clipped = _token(x, off[t], x - m, m, a, of)
        out.value.append(value)
        out.slope[t][t] = slope
        out.clipped.append(clipped)
        most = {"cispo": of.cispo_cap, "topr": 1 + 1e-6 if a <= 0 else math.inf}.get(of.surrogate, math.inf)
        out.capped.append(math.exp(held(off[t])) > most)
    return out


def _token(x: float, off: float, lag: float, m: float, a: float, of: ObjectiveSettings) -> tuple[float, float, bool]:
    """Value, derivative and whether clipped; `off` log ρ, `lag` log π/μ."""
    rho, moves = math.exp(held(off)), live(off)
    match of.surrogate:
        case "pg":
            return a * x, a, False
        case "ppo":
            return _ppo(rho, moves, a, of)
        case "cispo":
            weight = of.cispo_cap if rho > of.cispo_cap else rho
            return weight * a * x, weight * a, False
        case "sapo":
            tau = of.sapo_temperature_positive if a > 0 else of.sapo_temperature_negative
            gate = 1 / (1 + math.exp(-tau * (rho - 1)))
            return 4 * gate * a / tau, 4 * gate * (1 - gate) * rho * moves * a, False
        case "dppo":
            moved = math.exp(x) - math.exp(m)
            out = (a > 0 and moved > of.dppo_mask) or (a < 0 and -moved > of.dppo_mask)
            penalty, pull = of.dppo_penalty * held(lag) ** 2, 2 * of.dppo_penalty * held(lag) * live(lag)
            return (0.0 if out else rho * a) - penalty, (0.0 if out else rho * moves * a) - pull, out
        case "topr":
            weight = 1.0 if a > 0 or rho > 1 else rho
            return weight * a * x, weight * a, False
        case _:  # kimi, token by token
            tau = of.kimi_temperature
            return a * x - tau / 2 * held(off) ** 2, a - tau * held(off) * moves, False


def _ppo(rho: float, moves: float, a: float, of: ObjectiveSettings) -> tuple[float, float, bool]:
    """Where the minimum is which of its arguments."""
    low, high = 1 - of.clip_low, 1 + of.clip_high
    if a > 0 and rho > high:
        return high * a, 0.0, True
    if a < 0 and rho < low:
        return low * a, 0.0, True
    most = min(of.dual_clip or math.inf, of.ratio_bound or math.inf)
    if a < 0 and rho > most:
        return most * a, 0.0, True
    return rho * a, rho * moves * a, False


def _whole(line: Line, of: ObjectiveSettings) -> Gain:
    """Surrogates of a sequence: every token depends on every other."""
    length, gains = len(line.logprobs), line.gains
    none = [False] * length
    off = [x - p for x, p in zip(line.logprobs, line.proximal, strict=True)]
    if of.surrogate == "gspo":
        mean = math.fsum(off) / length
        s = math.exp(held(mean))
        at = [_ppo(s, live(mean), a, of) for a in gains]
        return Gain([v for v, _, _ in at], [[d / length] * length for _, d, _ in at], [hit for _, _, hit in at], none)
    if of.surrogate == "gmpo":
        hit = [(a > 0 and o > of.gmpo_clip) or (a < 0 and o < -of.gmpo_clip) for a, o in zip(gains, off, strict=True)]
        kept = [math.copysign(of.gmpo_clip, a) if h else o for a, o, h in zip(gains, off, hit, strict=True)]
        mean = math.fsum(kept) / length
        s = math.exp(held(mean))
        slope = [[0.0 if h else s * live(mean) * a / length for h in hit] for a in gains]
        return Gain([s * a for a in gains], slope, hit, none)
    if of.surrogate == "kimi":
        far, tau = math.fsum(off), of.kimi_temperature
        value = [a * x - tau / 2 * held(far) ** 2 / length for a, x in zip(gains, line.logprobs, strict=True)]
        pull = tau * held(far) * live(far) / length
        slope = [[(a if i == t else 0.0) - pull for i in range(length)] for t, a in enumerate(gains)]
        return Gain(value, slope, none, none)
    far, beta = math.fsum(x - m for x, m in zip(line.logprobs, line.behaviour, strict=True)), of.oapl_beta
    misses = [a - beta * held(far) for a in gains]
    return Gain(
        [-(miss**2) / (2 * beta) / length for miss in misses],
        [[miss * live(far) / length] * length for miss in misses],
        none,
        none,
    )


def kl(x: float, proximal: float, reference: float, of: ObjectiveSettings) -> tuple[float, float]:
    """KL_t and its derivative by log π, of what stands in the loss."""
    off = held(x - reference)
    moves = live(x - reference)
    if of.kl == "k2":
        return off * off / 2, off * moves
    if of.kl not in ("k3", "k3_ratio"):
        return 0.0, 0.0
    k3, slope = math.expm1(-off) + off, -math.expm1(-off) * moves
    if of.kl == "k3":
        return k3, slope
    rho = math.exp(held(x - proximal))
    return rho * k3, rho * (live(x - proximal) * k3 + slope)
