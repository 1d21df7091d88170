"""Advantages from the group itself: no value network.

Invariant: a group of one and a group of equal rewards have advantage exactly 0. Refuses to know tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def leave_one_out(rewards: npt.ArrayLike) -> Array:
    """A_i = r_i − mean of the others = G/(G−1)·(r_i − r̄), (G,) → (G,). RLOO: Kool et al. 2019, Ahmadian et al. 2024."""
    r = np.asarray(rewards, np.float64)
    group = len(r)
    if group < 2 or bool((r == r[0]).all()):  # exact zeros, whatever rounding makes of the mean
        return np.zeros(group)
    centred: Array = r - r.mean()
    return group / (group - 1) * centred
