"""What a step says of itself: how far off the policy its tokens were, and what the objective made of that.

Invariant: figures are of the whole batch, each token counted once, at the moment its gradient was taken. Cheap enough
to be always on: a few passes over arrays of one number a token. Refuses to know the model and where figures go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from consumer.objective.tokens import held, total
from consumer.sheet import Sheet

QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99}
CPU = torch.device("cpu")
SAMPLE = 1 << 20  # tokens that quantiles are taken of, at most: torch sorts no more than 2^24


@dataclass(frozen=True)
class StepStats:
    """Figures of a step. Ratios are π/μ, staleness is in versions, KL and entropy in nats a token, times in seconds.

    `ess` and `sequence_ess` are fractions, of the ratios π/μ at the start of the batch (of the minibatch, for an
    objective that does not look back so far), before any bound. A figure that this step cannot know (of tokens with
    A < 0 where there are none) is None.

    `completions_by_length` and `staleness_by_length`, the mean staleness of their oldest token, go by the power of two
    up to which a completion is long. What the step took (`effort.py`) is filled in by whoever has a clock.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    tokens: int
    padded_tokens: int
    entropy: float
    ess: float
    sequence_ess: float
    ratio_mean: float
    ratio_max: float
    ratio_p01: float
    ratio_p50: float
    ratio_p99: float
    kl: float
    kl_k1: float
    clip_fraction: float
    clip_fraction_positive: float | None
    clip_fraction_negative: float | None
    truncation_fraction: float
    truncation_fraction_positive: float | None
    truncation_fraction_negative: float | None
    mask_fraction: float
    mask_fraction_positive: float | None
    mask_fraction_negative: float | None
    mismatch_engine: float | None
    mismatch_staleness: float | None
    mismatch_by_staleness: dict[int, float]
    kl_reference: float | None
    advantage_mean: float
    advantage_std: float
    staleness_mean: float
    staleness_max: int
    staleness_histogram: dict[int, int]
    completions_by_length: dict[int, int]
    staleness_by_length: dict[int, float]
    train_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    mfu: float | None = None
    peak_flops: float | None = None


COLUMNS = ("logprobs", "anchor", "entropy", "clipped", "truncated", "masked", "reference")


class Figures:
    """A few numbers a token: `table` (len(COLUMNS), N), in the order of the sheet, filled while gradients are taken.

    It stays where the model computes until it is full: to look at a number there is to wait for the device.
    """

    def __init__(self, size: int, device: torch.device = CPU) -> None:
        self.table = torch.zeros(len(COLUMNS), size, dtype=torch.float64, device=device)

    def put(self, tokens: Tensor, **values: Tensor) -> None:
        """What was found of these tokens (n,), a value (n,) for each column that is known."""
        for name, value in values.items():
            self.table[COLUMNS.index(name), tokens] = value.detach().double()

    def come_home(self) -> None:
        """To the CPU, where all else is."""
        self.table = self.table.to(CPU)

    def __getitem__(self, name: str) -> Tensor:
        return self.table[COLUMNS.index(name)]


def step_stats(
    sheet: Sheet,
    figures: Figures,
    *,
    advantages: Tensor,
    staleness: Tensor,
    losses: list[float],
    norms: list[float],
    rate: float,
    padded: int,
    with_reference: bool = False,
) -> StepStats:
    """The figures of one step; `advantages`, `staleness` (N,); `with_reference`: its column is filled."""
    behaviour = sheet.behaviour.double()
    off = held(figures["logprobs"] - behaviour)
    start = held(figures["anchor"] - behaviour)
    ratio = off.exp()
    last = torch.from_numpy((sheet.starts + sheet.lengths - 1)[sheet.lengths > 0])
    of_sequences = held(total(figures["anchor"] - behaviour, sheet.sequences)[last])
    ages, counts = torch.unique(staleness, return_counts=True)
    by_age = {int(a): float(k3(start[staleness == a]).mean()) for a in ages}
    by_length = staleness_by_length(sheet, staleness)
    signs = {"positive": advantages > 0, "negative": advantages < 0}
    finite = [norm for norm in norms if norm == norm and abs(norm) != float("inf")]
    return StepStats(
        loss=sum(losses) / len(losses),
        grad_norm=max(norms) if len(finite) == len(norms) else float("nan"),
        learning_rate=rate,
        skipped=len(finite) < len(norms),
        tokens=len(sheet),
        padded_tokens=padded,
        entropy=float(figures["entropy"].mean()),
        ess=effective_sample_size(start.exp()),
        sequence_ess=effective_sample_size(of_sequences.exp()),
        ratio_mean=float(ratio.mean()),
        ratio_max=float(ratio.max()),
        kl=float(k3(off).mean()),
        kl_k1=float(-off.mean()),
        mismatch_engine=by_age.get(0),
        mismatch_staleness=_beyond(by_age, staleness, start),
        mismatch_by_staleness=by_age,
        kl_reference=None if not with_reference else float(k3(held(figures["reference"] - figures["logprobs"])).mean()),
        advantage_mean=float(advantages.mean()),
        advantage_std=float(advantages.std(correction=0)),
        staleness_mean=float(staleness.double().mean()),
        staleness_max=int(staleness.max()),
        staleness_histogram={int(a): int(c) for a, c in zip(ages, counts, strict=True)},
        completions_by_length={length: len(oldest) for length, oldest in by_length.items()},
        staleness_by_length={length: sum(oldest) / len(oldest) for length, oldest in by_length.items()},
        **dict(zip(QUANTILES, quantiles(ratio, list(QUANTILES.values())), strict=True)),  # type: ignore[arg-type]
        **_fractions(figures, signs),  # type: ignore[arg-type]
    )


def staleness_by_length(sheet: Sheet, staleness: Tensor) -> dict[int, list[int]]:
    """The staleness of the oldest token of each completion, by the power of two up to which it is long."""
    some = np.flatnonzero(sheet.lengths > 0)
    oldest = np.maximum.reduceat(staleness.numpy(), sheet.starts[some]) if len(some) else some
    found: dict[int, list[int]] = {}
    for length, age in zip(sheet.lengths[some].tolist(), oldest.tolist(), strict=True):
        found.setdefault(1 << (length - 1).bit_length(), []).append(age)
    return dict(sorted(found.items()))


def effective_sample_size(weights: Tensor) -> float:
    """(Σw)²/(N·Σw²) in (0, 1] of N weights (Kish 1965); 1 when all are equal."""
    total_weight = torch.sum(weights)
    if not weights.numel():
        return 1.0
    return float(total_weight * total_weight / (weights.numel() * torch.sum(weights * weights)))


def k3(log_ratio: Tensor) -> Tensor:
    """r − 1 − log r for log r = log π/μ at tokens of μ, (N,): an estimate of KL(μ‖π) that is never negative."""
    return log_ratio.exp() - 1 - log_ratio


def quantiles(values: Tensor, qs: Sequence[float]) -> list[float]:
    """The q-quantiles of (N,), of evenly spaced ones where there are very many."""
    wanted = torch.tensor(qs, dtype=values.dtype)
    return [float(q) for q in torch.quantile(values[:: len(values) // SAMPLE + 1], wanted)]


def _fractions(figures: Figures, signs: dict[str, Tensor]) -> dict[str, float | None]:
    """Of all tokens, and of those with either sign of A."""
    out: dict[str, float | None] = {}
    for name, column in (("clip", "clipped"), ("truncation", "truncated"), ("mask", "masked")):
        hit = figures[column]
        out[f"{name}_fraction"] = float(hit.mean())
        for sign, chosen in signs.items():
            out[f"{name}_fraction_{sign}"] = float(hit[chosen].mean()) if bool(chosen.any()) else None
    return out


def _beyond(by_age: dict[int, float], staleness: Tensor, start: Tensor) -> float | None:
    """KL(μ‖π) of the stale tokens beyond what the engine's own numerics cost: that of tokens of the same version.

    None unless the batch has both kinds.
    """
    stale = staleness > 0
    if 0 not in by_age or not bool(stale.any()):
        return None
    return float(k3(start[stale]).mean()) - by_age[0]
