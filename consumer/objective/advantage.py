"""Advantages from the groups themselves: no value network.

Invariant: with a baseline, a group of one and a group of equal rewards have advantage exactly 0. (Without one, as in
REINFORCE, nothing is compared within a group and a reward counts as it is.) Refuses to know tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from consumer.objective.axes import Baseline
from consumer.objective.settings import ObjectiveSettings

Array = npt.NDArray[np.float64]
Components = Sequence[Mapping[str, float]]  # of each rollout of a group


def advantages(rewards: Array, sizes: Sequence[int], of: ObjectiveSettings, components: Components = ()) -> Array:
    """A (S,) of the rollouts of a batch from their rewards (S,), which stand group by group, `sizes` in each.

    `components` (S of them) are asked for by `scale = "gdpo"` alone. `batch_whiten` is left to `whitened`, which needs
    tokens.
    """
    bounds = [0, *np.cumsum(sizes).tolist()]
    if of.scale == "gdpo":
        parts = [_gdpo(components[a:b], of) for a, b in pairwise(bounds)]
        out = np.concatenate([np.zeros(0), *parts])
        return _over_std(out, out, of)  # their mean is 0, and a group of equals stays exactly there
    parts = [_in_group(rewards[a:b], of) for a, b in pairwise(bounds)]
    out = np.concatenate([np.zeros(0), *parts])
    return _over_std(out, out, of) if of.scale == "batch_std" else out


def centred(rewards: npt.ArrayLike, baseline: Baseline) -> Array:
    """Rewards (G,) less their baseline (G,).

    `mean` r_i − r̄ · `leave_one_out` r_i − mean of the others = G/(G−1)·(r_i − r̄) (RLOO: Kool et al. 2019, Ahmadian et
    al. 2024) · `none` r_i.
    """
    r = np.asarray(rewards, np.float64)
    if baseline == "none":
        return r
    if len(r) < 2 or bool((r == r[0]).all()):  # exact zeros, whatever rounding makes of the mean
        return np.zeros(len(r))
    off: Array = r - r.mean()
    return off * len(r) / (len(r) - 1) if baseline == "leave_one_out" else off


def whitened(returns: Array, counted: npt.NDArray[np.bool_], of: ObjectiveSettings) -> Array:
    """(R − mean)/(std + ε) over the counted tokens of a batch, (N,) → (N,). REINFORCE++, Hu 2025."""
    seen = returns[counted]
    if len(seen) < 2 or bool((seen == seen[0]).all()):  # the std of equals need not come out as 0
        return np.zeros_like(returns)
    out: Array = (returns - seen.mean()) / (seen.std(ddof=1) + of.std_eps)
    return out


def overlong_penalty(lengths: npt.ArrayLike, limit: int, buffer: int) -> Array:
    """DAPO's soft punishment (S,): 0 up to `limit − buffer` tokens, then linearly to −1 at `limit`. Yu et al. 2025."""
    return np.clip((limit - buffer - np.asarray(lengths, np.float64)) / buffer, -1.0, 0.0)


def _in_group(rewards: Array, of: ObjectiveSettings) -> Array:
    off = centred(rewards, of.baseline)
    if of.scale == "group_std":
        return _over_std(off, rewards, of)
    if of.scale == "group_mean":  # MaxRL, Tajwar et al. 2026; meant for rewards that are never negative
        mean = float(rewards.mean()) if len(rewards) else 0.0
        return off / mean if mean > 0 else np.zeros_like(off)
    return off


def _gdpo(components: Components, of: ObjectiveSettings) -> Array:
    """Each component z-scored by itself within the group, then summed: none drowns another. GDPO, Liu et al. 2026."""
    names = sorted(of.gdpo_weights) or sorted({name for one in components for name in one})
    total = np.zeros(len(components))
    for name in names:
        values = np.array([one.get(name, 0.0) for one in components], np.float64)
        total += of.gdpo_weights.get(name, 1.0) * _over_std(centred(values, "mean"), values, of)
    return total


def _over_std(off: Array, values: Array, of: ObjectiveSettings) -> Array:
    """off/(std of `values` + ε), zeros where those are all equal."""
    if len(values) < 2 or bool((values == values[0]).all()):
        return np.zeros_like(off)
    out: Array = off / (values.std(ddof=of.std_ddof) + of.std_eps)
    return out
