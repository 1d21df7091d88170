"""How long groups take to sample: distributions with a mean of one step.

Invariant: what is drawn is a function of the seed alone. Refuses to know who waits for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
HISTOGRAM = Path(__file__).with_name("gsm8k_lengths.json")
TAIL = 10.0  # p99 over median, of the log-normal one
SIGMA = math.log(TAIL) / NormalDist().inv_cdf(0.99)
GROUP_SIZE = 8
SAMPLES = 1 << 20  # of an expectation without a closed form


@dataclass(frozen=True)
class Times:
    """A distribution of group times whose mean is 1: `draw(chance, count)` gives (count,) of them."""

    name: str
    draw: Callable[[np.random.Generator, int], Floats]

    def tail(self) -> float:
        """p99 over median."""
        median, slow = np.quantile(self.draw(np.random.default_rng(0), SAMPLES), (0.5, 0.99))
        return float(slow / median)

    def slowest(self, of: int) -> float:
        """E[max of so many]."""
        drawn = self.draw(np.random.default_rng(0), SAMPLES // of * of)
        return float(drawn.reshape(-1, of).max(axis=1).mean())


def lognormal() -> Times:
    """p99/median = 10."""
    return Times("log-normal", lambda chance, count: np.exp(SIGMA * chance.standard_normal(count) - SIGMA**2 / 2))


def gsm8k() -> Times:
    """A group lasts as long as the longest of eight answers that GSM8K has to questions of one length."""
    counts = np.array(json.loads(HISTOGRAM.read_text())["counts"])  # (cells, 3): prompt, answer, problems
    slowest, likely = [], []
    for prompt in np.unique(counts[:, 0]):
        answers, problems = counts[counts[:, 0] == prompt][:, 1:].T
        below = (np.cumsum(problems) / problems.sum()) ** GROUP_SIZE
        slowest.append(answers + 0.5)  # the middle of a cell
        likely.append(np.diff(below, prepend=0.0) * problems.sum())
    lengths, weights = np.concatenate(slowest), np.concatenate(likely) / counts[:, 2].sum()
    seconds = lengths / (lengths * weights).sum()
    return Times("GSM8K", lambda chance, count: chance.choice(seconds, count, p=weights))


DISTRIBUTIONS: Mapping[str, Callable[[], Times]] = {"log-normal": lognormal, "GSM8K": gsm8k}
