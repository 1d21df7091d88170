"""What an evaluation says of answers: pass@k, majority@k, and how sure it is of them.

Invariant: pass@k is the unbiased estimate from the samples there are, never the fraction of one draw of k. Refuses to
know text: answers are numbers that are equal where the answers are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from broker.schema import Rollout, RolloutGroup


def pass_at(samples: int, correct: int, k: int) -> float:
    """The chance that one of k out of `samples`, `correct` of which solve the problem, does.

    1 − C(n−c, k)/C(n, k), unbiased for n ≥ k (Chen et al. 2021). Raises `ValueError` for k beyond the samples.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority(rollouts: Sequence[Rollout]) -> float:
    """The answer most of them give solves the problem: 1 or 0, a fraction where several answers tie.

    Samples that declare no answer and do not solve it have no vote (self-consistency, Wang et al. 2022).
    """
    votes = Counter(r.answer for r in rollouts if r.answer >= 0)
    if not votes:
        return 0.0
    most = max(votes.values())
    leading = {answer for answer, count in votes.items() if count == most}
    right = {r.answer for r in rollouts if r.answer in leading and r.solved}
    return len(right) / len(leading)


def ks(samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples itself."""
    return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})


def figures(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """Of problems that were answered: means over problems, lengths and truncation over samples.

    `pass_at` and `majority_at` by k, as text since JSON has no other keys; `pass_at_1_error`: the standard error over
    problems.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    samples = min((len(g.rollouts) for g in groups), default=0)
    counts = [(len(g.rollouts), sum(r.solved for r in g.rollouts)) for g in groups]
    at = {str(k): _mean(pass_at(n, c, k) for n, c in counts) for k in ks(samples)} if samples else {}
    return {
        "problems": len(groups),
        "samples": len(rollouts),
        "pass_at_1": at.get("1"),
        "pass_at_1_error": _error([c / n for n, c in counts]),
        "pass_at": at,
        "majority_at": {str(samples): _mean(majority(g.rollouts) for g in groups)} if samples else {},
        "reward": _mean(r.reward for r in rollouts),
        "mean_length": _mean(len(r.tokens) for r in rollouts),
        "truncated_fraction": _mean(r.truncated for r in rollouts),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def _error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
