"""The figures of a made-up step. Refuses to know how figures come about."""

from __future__ import annotations

from typing import Any

from consumer.figures import StepStats


def step_stats(**said: Any) -> StepStats:
    """Figures as `said`; whatever is not is unremarkable: no ratio but 1, nothing clipped, truncated or masked."""
    signs = ("", "_positive", "_negative")
    usual: dict[str, Any] = {
        "loss": 0.0, "grad_norm": 1.0, "learning_rate": 1e-5, "skipped": False, "tokens": 1, "padded_tokens": 1,
        "entropy": 1.0, "ess": 1.0, "sequence_ess": 1.0, "ratio_mean": 1.0, "ratio_max": 1.0, "ratio_p01": 1.0,
        "ratio_p50": 1.0, "ratio_p99": 1.0, "kl": 0.0, "kl_k1": 0.0, "kl_reference": None, "mismatch_engine": None,
        "mismatch_staleness": None, "mismatch_by_staleness": {}, "advantage_mean": 0.0, "advantage_std": 1.0,
        "staleness_mean": 0.0, "staleness_max": 0, "staleness_histogram": {}, "train_seconds": 1.0,
        "completions_by_length": {}, "staleness_by_length": {},
        **{f"{name}_fraction{sign}": 0.0 for name in ("clip", "truncation", "mask") for sign in signs},
    }  # fmt: skip
    return StepStats(**{**usual, **said})
