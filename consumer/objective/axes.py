"""The axes of an objective, the choices on each, and which settings belong to which choice.

Invariant: every setting that some choice leaves without effect is in `OWNERS`. Refuses to know values and defaults.
"""

from __future__ import annotations

from typing import Literal

Baseline = Literal["leave_one_out", "mean", "none"]
Scale = Literal["none", "group_std", "batch_std", "group_mean", "batch_whiten", "gdpo"]
Surrogate = Literal["ppo", "pg", "cispo", "gspo", "gmpo", "sapo", "dppo", "topr", "kimi", "oapl"]
Proximal = Literal["recompute", "behaviour", "loglinear"]
Level = Literal["none", "token", "prefix", "sequence", "geometric"]
Bound = Literal["none", "truncate", "mask"]
Aggregation = Literal["token_mean", "sequence_mean", "constant", "prompt_mean"]
Kl = Literal["none", "k1_reward", "k1_reward_to_go", "k2", "k3", "k3_ratio"]

# Surrogates whose ratio, or whose square, is of a whole sequence and so wants one advantage for all of it.
OF_SEQUENCES = ("gspo", "gmpo", "oapl")
# Settings that belong to one choice on an axis, and do nothing beside another.
OWNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "std_ddof": ("scale", ("group_std", "batch_std", "gdpo")),
    "std_eps": ("scale", ("group_std", "batch_std", "batch_whiten", "gdpo")),
    "gdpo_weights": ("scale", ("gdpo",)),
    "clip_low": ("surrogate", ("ppo", "gspo")),
    "clip_high": ("surrogate", ("ppo", "gspo")),
    "dual_clip": ("surrogate", ("ppo",)),
    "ratio_bound": ("surrogate", ("ppo",)),
    "cispo_cap": ("surrogate", ("cispo",)),
    "gmpo_clip": ("surrogate", ("gmpo",)),
    "sapo_temperature_positive": ("surrogate", ("sapo",)),
    "sapo_temperature_negative": ("surrogate", ("sapo",)),
    "dppo_mask": ("surrogate", ("dppo",)),
    "dppo_penalty": ("surrogate", ("dppo",)),
    "kimi_temperature": ("surrogate", ("kimi",)),
    "oapl_beta": ("surrogate", ("oapl",)),
    "ratio_level": ("surrogate", ("topr", "kimi")),
    "truncation": ("correction_bound", ("truncate",)),
    "mask_low": ("correction_bound", ("mask",)),
    "mask_high": ("correction_bound", ("mask",)),
    "correction_bound": ("correction", ("token", "prefix", "sequence", "geometric")),
    "normalise_weights": ("correction", ("token", "prefix", "sequence", "geometric")),
    "constant_length": ("aggregation", ("constant",)),
    "kl_coefficient": ("kl", ("k1_reward", "k1_reward_to_go", "k2", "k3", "k3_ratio")),
    "overlong_buffer": ("overlong", ("soft",)),
}
