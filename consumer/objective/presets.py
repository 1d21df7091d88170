"""Named points on the axes: what a paper or a trainer does, as the settings that differ from the default.

Invariant: a preset only sets axes; nothing in the code asks for its name. Where a publication leaves the behaviour
policy implicit (its samples come from π_old), μ takes π_old's place. Refuses to know what a setting means.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal[
    "headrace", "pg", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "gmpo", "sapo", "cispo", "scalerl",
    "areal", "m2po", "prime", "pipelinerl", "topr", "kimi", "oapl", "maxrl",
]  # fmt: skip

_ON_MU = {"proximal": "behaviour", "correction": "none"}
_Z_SCORE = {"baseline": "mean", "scale": "group_std"}

PRESETS: dict[str, dict[str, Any]] = {
    # Leave-one-out, decoupled, truncated weights, global token mean.
    "headrace": {},
    # Nothing pays for staleness: the yardstick that shows what a correction is worth.
    "pg": {"surrogate": "pg", "correction": "none"},
    # DeepSeekMath, Shao et al. 2024.
    "grpo": {
        **_ON_MU, **_Z_SCORE, "clip_high": 0.2, "aggregation": "sequence_mean", "kl": "k3", "kl_coefficient": 0.04,
        "degenerate": "keep",
    },
    # Liu et al. 2025: neither standard deviation nor length in a denominator.
    "dr_grpo": {**_ON_MU, "baseline": "mean", "clip_high": 0.2, "aggregation": "constant", "degenerate": "keep"},
    # Yu et al. 2025: clip-higher, dynamic sampling, token mean, soft overlong punishment (`overlong = "soft"` and a
    # buffer of a fifth of the length: it depends on sampling.max_tokens, so it is the recipe's to set).
    "dapo": {**_ON_MU, **_Z_SCORE},
    # Ahmadian et al. 2024; KL in the reward is the recipe's to add.
    "rloo": {**_ON_MU, "surrogate": "pg", "aggregation": "constant", "degenerate": "keep"},
    # Hu 2025: no critic, no group; KL to go in the reward, returns whitened over the batch.
    "reinforce_pp": {
        **_ON_MU, "baseline": "none", "scale": "batch_whiten", "clip_high": 0.2, "kl": "k1_reward_to_go",
        "kl_coefficient": 0.01, "degenerate": "keep",
    },
    # Zheng et al. 2025.
    "gspo": {
        **_ON_MU, **_Z_SCORE, "surrogate": "gspo", "clip_low": 3e-4, "clip_high": 4e-4,
        "aggregation": "sequence_mean",
    },
    # Zhao et al. 2025.
    "gmpo": {**_ON_MU, **_Z_SCORE, "surrogate": "gmpo", "aggregation": "sequence_mean"},
    # Gao et al. 2025.
    "sapo": {**_ON_MU, **_Z_SCORE, "surrogate": "sapo", "aggregation": "sequence_mean"},
    # MiniMax-M1, Chen et al. 2025.
    "cispo": {**_ON_MU, **_Z_SCORE, "surrogate": "cispo"},
    # Khatri et al. 2025: CISPO at 5, prompt mean, batch standard deviation, zero-variance filter, fp32 logits.
    "scalerl": {
        **_ON_MU, "baseline": "mean", "scale": "batch_std", "surrogate": "cispo", "aggregation": "prompt_mean",
    },
    # Fu et al. 2025: decoupled PPO, weights capped at 5.
    "areal": {"baseline": "mean", "scale": "group_std", "clip_high": 0.2, "truncation": 5.0},
    # Zheng et al. 2025: harmful tokens masked until the second moment is small; the weight is otherwise unbounded.
    "m2po": {**_Z_SCORE, "surrogate": "pg", "correction_bound": "none", "m2po": 0.04},
    # prime-rl: divergence mask and a small quadratic penalty.
    "prime": {**_ON_MU, "surrogate": "dppo", "baseline": "mean"},
    # Piché et al. 2025: leave-one-out, truncated importance weights, plain policy gradient.
    "pipelinerl": {"surrogate": "pg", "truncation": 5.0},
    # Le Roux et al. 2025: no ratio for what was good, the trajectory's, truncated at 1, for what was not.
    "topr": {**_ON_MU, "surrogate": "topr", "ratio_level": "sequence", "baseline": "mean"},
    # Kimi k1.5, 2025: a squared log-ratio of the sequence instead of a clip.
    "kimi": {**_ON_MU, "surrogate": "kimi", "ratio_level": "sequence", "baseline": "mean"},
    # Regression of the advantage on the log-ratio to the lagged sampler.
    "oapl": {**_ON_MU, "surrogate": "oapl", "baseline": "mean", "aggregation": "constant"},
    # Tajwar et al. 2026.
    "maxrl": {**_ON_MU, "baseline": "mean", "scale": "group_mean", "clip_high": 0.2},
}  # fmt: skip


SOURCES: dict[str, str] = {
    "headrace": "the default",
    "pg": "no correction at all: the yardstick",
    "grpo": "DeepSeekMath, Shao et al. 2024",
    "dr_grpo": "Liu et al. 2025",
    "dapo": "Yu et al. 2025",
    "rloo": "Ahmadian et al. 2024",
    "reinforce_pp": "Hu 2025",
    "gspo": "Zheng et al. 2025",
    "gmpo": "Zhao et al. 2025",
    "sapo": "Gao et al. 2025",
    "cispo": "MiniMax-M1, 2025",
    "scalerl": "Khatri et al. 2025",
    "areal": "Fu et al. 2025",
    "m2po": "Zheng et al. 2025",
    "prime": "prime-rl, 2025",
    "pipelinerl": "Piché et al. 2025",
    "topr": "Le Roux et al. 2025",
    "kimi": "Kimi k1.5, 2025",
    "oapl": "lagged-policy regression, 2026",
    "maxrl": "Tajwar et al. 2026",
}
