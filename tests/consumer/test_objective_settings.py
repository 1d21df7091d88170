"""The `[objective]` section: presets, what is laid over them, and every refusal by the name of what it is about."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from broker.errors import Refused
from consumer.objective.axes import OWNERS
from consumer.objective.presets import PRESETS
from consumer.objective.settings import ObjectiveSettings
from tests.consumer.test_objective_oracle import accepted, core, pairwise

KL = {"kl": "k3", "kl_coefficient": 0.1}
ON_MU = {"proximal": "behaviour", "correction": "none"}


def settings(**choice: Any) -> ObjectiveSettings:
    return ObjectiveSettings.model_validate(choice)


def resolved(of: ObjectiveSettings) -> dict[str, Any]:
    """As a recipe with nothing left unsaid is stored."""
    document: dict[str, Any] = json.loads(of.model_dump_json(exclude_none=True))
    return document


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("correction = 'token' has no effect with proximal = 'behaviour'", {"proximal": "behaviour"}),
    ("correction = 'prefix' has no effect", {"proximal": "behaviour", "correction": "prefix"}),
    ("scale = 'group_std' divides what a baseline has centred", {"baseline": "none", "scale": "group_std"}),
    ("scale = 'batch_std' divides what a baseline has centred", {"baseline": "none", "scale": "batch_std"}),
    ("scale = 'group_mean' divides", {"baseline": "none", "scale": "group_mean"}),
    ("scale = 'gdpo' divides", {"baseline": "none", "scale": "gdpo"}),
    ("scale = 'gdpo' divides what is centred on the group's mean: set baseline = 'mean'", {"scale": "gdpo"}),
    ("scale = 'group_mean' divides what is centred on the group's mean: set baseline", {"scale": "group_mean"}),
    (
        "overlong = 'soft' and kl = 'k1_reward' have no effect",
        {"baseline": "mean", "scale": "gdpo", "overlong": "soft", "overlong_buffer": 4},
    ),
    (
        "overlong = 'soft' and kl = 'k1_reward' have no effect",
        {"baseline": "mean", "scale": "gdpo", "kl": "k1_reward", "kl_coefficient": 0.1},
    ),
    ("set baseline = 'none', or scale = 'batch_std'", {"baseline": "mean", "scale": "batch_whiten"}),
    ("set baseline = 'none', or scale = 'batch_std'", {"scale": "batch_whiten"}),
    *(
        ("set kl = 'k1_reward'", {"kl": "k1_reward_to_go", "kl_coefficient": 0.1, **surrogate})
        for surrogate in (
            {"surrogate": "gspo"},
            {"surrogate": "gmpo"},
            {"surrogate": "oapl", **ON_MU},
            {"surrogate": "topr", "ratio_level": "sequence"},
            {"surrogate": "kimi", "ratio_level": "sequence"},
        )
    ),
    ("kl and kl_coefficient belong together", {"kl": "k2"}),
    ("kl and kl_coefficient belong together", {"preset": "grpo", "kl": "none"}),
    ("kl_coefficient = 0.1 has no effect with kl = 'none'", {"kl_coefficient": 0.1}),
    ("reference has no effect without kl", {"reference": "models/base"}),
    ("mask_low must be below mask_high", {"correction_bound": "mask", "mask_low": 2.5}),
    ("mask_low must be below mask_high", {"correction_bound": "mask", "mask_low": 1.0, "mask_high": 1.0}),
    ("overlong = 'soft' and overlong_buffer > 0 belong together", {"overlong": "soft"}),
    ("ratio_bound must be above 1 + clip_high", {"ratio_bound": 1.28}),
    ("the larger has no effect", {"dual_clip": 3.0, "ratio_bound": 4.0}),
    ("denominator = 'after' has no effect", {"denominator": "after"}),
    ("denominator = 'after' has no effect", {"denominator": "after", "overlong": "soft", "overlong_buffer": 4}),
    ("surrogate = 'oapl' regresses", {"surrogate": "oapl"}),
    ("surrogate = 'oapl' regresses", {"surrogate": "oapl", "correction": "none"}),
    ("proximal = 'loglinear' moves", {"proximal": "loglinear", "normalise_weights": True}),
    (
        "proximal = 'loglinear' moves",
        {"proximal": "loglinear", "denominator": "after", "correction_bound": "mask"},
    ),
]


@pytest.mark.parametrize(("named", "choice"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_combination_that_means_nothing_is_refused_by_name(named: str, choice: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**choice)
    message = str(refused.value.errors()[0]["msg"])
    assert named in message
    assert "\n" not in message


# A value that says something, and choices beside which it does and does not.
IDLE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "std_ddof": (0, {"scale": "batch_std"}, {"scale": "none"}),
    "std_eps": (0.1, {"scale": "group_std"}, {"scale": "group_mean", "baseline": "mean"}),
    "gdpo_weights": ({"right": 2.0}, {"scale": "gdpo", "baseline": "mean"}, {"scale": "group_std"}),
    "clip_low": (0.1, {"surrogate": "gspo"}, {"surrogate": "cispo"}),
    "clip_high": (0.1, {"surrogate": "ppo"}, {"surrogate": "pg"}),
    "dual_clip": (3.0, {"surrogate": "ppo"}, {"surrogate": "gspo"}),
    "ratio_bound": (4.0, {"surrogate": "ppo"}, {"surrogate": "gspo"}),
    "cispo_cap": (2.0, {"surrogate": "cispo"}, {"surrogate": "ppo"}),
    "gmpo_clip": (0.2, {"surrogate": "gmpo"}, {"surrogate": "ppo"}),
    "sapo_temperature_positive": (2.0, {"surrogate": "sapo"}, {"surrogate": "ppo"}),
    "sapo_temperature_negative": (2.0, {"surrogate": "sapo"}, {"surrogate": "ppo"}),
    "dppo_mask": (0.1, {"surrogate": "dppo"}, {"surrogate": "ppo"}),
    "dppo_penalty": (0.1, {"surrogate": "dppo"}, {"surrogate": "ppo"}),
    "kimi_temperature": (0.2, {"surrogate": "kimi"}, {"surrogate": "ppo"}),
    "oapl_beta": (2.0, {"surrogate": "oapl", **ON_MU}, {"surrogate": "ppo"}),
    "ratio_level": ("sequence", {"surrogate": "topr"}, {"surrogate": "ppo"}),
    "truncation": (3.0, {"correction_bound": "truncate"}, {"correction_bound": "mask"}),
    "mask_low": (0.3, {"correction_bound": "mask"}, {"correction_bound": "truncate"}),
    "mask_high": (3.0, {"correction_bound": "mask"}, {"correction": "none", "correction_bound": "truncate"}),
    "correction_bound": ("mask", {"correction": "prefix"}, {"correction": "none"}),
    "normalise_weights": (True, {"correction": "sequence"}, {"correction": "none"}),
    "constant_length": (7, {"aggregation": "constant"}, {"aggregation": "token_mean"}),
    "kl_coefficient": (0.2, {"kl": "k2"}, {"kl": "none"}),
    "overlong_buffer": (3, {"overlong": "soft"}, {"overlong": "filter"}),
}


@pytest.mark.parametrize("name", OWNERS)
def test_a_setting_whose_axis_says_something_else_is_refused_and_not_forgotten(name: str) -> None:
    value, beside, elsewhere = IDLE[name]
    assert getattr(settings(**{name: value}, **beside), name) == value
    with pytest.raises(ValidationError) as refused:
        settings(**{name: value}, **elsewhere)
    message = str(refused.value.errors()[0]["msg"])
    assert f"{name} = {value} has no effect with {OWNERS[name][0]} = " in message
    assert f"or set {OWNERS[name][0]} to {' or '.join(OWNERS[name][1])}" in message


def test_a_setting_is_idle_also_where_the_axis_of_its_axis_is() -> None:
    """truncation belongs to correction_bound, which belongs to correction."""
    with pytest.raises(ValidationError, match=r"truncation = 3\.0 has no effect with correction = 'none'"):
        settings(correction="none", truncation=3.0)
    with pytest.raises(ValidationError, match=r"truncation = 3\.0 has no effect with correction = 'none'"):
        settings(preset="grpo", truncation=3.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_low", 1.0), ("clip_low", -0.1), ("clip_high", -0.1), ("truncation", 0.0), ("mask_high", 0.0),
        ("veto", 0.0), ("veto", 1.0), ("off_policy_mask", -0.1), ("m2po", 0.0), ("dual_clip", 1.0),
        ("ratio_bound", 1.0), ("entropy_bonus", -1.0), ("kl_coefficient", -1.0), ("std_ddof", 2), ("std_eps", -1e-9),
        ("constant_length", 0), ("overlong_buffer", -1), ("truncation", float("nan")), ("preset", "ppo"),
        ("surrogate", "trpo"), ("kl", "k4"), ("correction", "batch"), ("proximal", "old"), ("aggregation", "mean"),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_refused_by_its_key(name: str, value: Any) -> None:
    beside = IDLE[name][1] if name in IDLE else {}
    with pytest.raises(ValidationError) as refused:
        settings(**{name: value}, **beside)
    assert refused.value.errors()[0]["loc"] == (name,)


def test_a_key_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="clip"):
        settings(clip=0.2)


# -- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_axes_and_leaves_the_others_at_their_defaults(name: str) -> None:
    of, default = settings(preset=name), settings()
    assert of.preset == name
    assert of.overridden == {}
    for axis, value in of:
        if axis != "preset":
            assert value == PRESETS[name].get(axis, getattr(default, axis)), axis


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_recipe_is_the_same_recipe_whatever_default_it_spells_out(name: str) -> None:
    of = settings(preset=name)
    assert settings(**resolved(of)) == of


def test_so_is_a_resolved_recipe_of_any_point_that_is_accepted() -> None:
    for point in [*core()[::3], *pairwise()[0]]:
        of = accepted(point)
        assert of is not None
        assert settings(**resolved(of)) == of, point


def test_dapo_sets_its_axes_and_an_axis_beside_it_overrides_it() -> None:
    of = settings(preset="dapo")
    assert (of.baseline, of.scale, of.surrogate, of.clip_high) == ("mean", "group_std", "ppo", 0.28)
    assert (of.proximal, of.correction, of.aggregation) == ("behaviour", "none", "token_mean")
    changed = settings(preset="dapo", clip_high=0.3, overlong="soft", overlong_buffer=4)
    assert changed.overridden == {"clip_high": 0.3, "overlong": "soft", "overlong_buffer": 4}
    assert (changed.baseline, changed.proximal) == ("mean", "behaviour")
    assert settings(**resolved(changed)) == changed


def test_a_preset_whose_surrogate_is_replaced_leaves_nothing_of_it_in_the_way() -> None:
    """Kimi's ratio is the sequence's, which no KL to go goes with; PPO's is not."""
    of = settings(preset="kimi", surrogate="ppo", kl="k1_reward_to_go", kl_coefficient=0.1)
    assert of.surrogate == "ppo"
    with pytest.raises(ValidationError, match="k1_reward"):
        settings(preset="kimi", kl="k1_reward_to_go", kl_coefficient=0.1)


def test_a_mean_ratio_is_held_closer_to_1_than_a_tokens_unless_the_recipe_says_how_close() -> None:
    mean = settings(correction="geometric", correction_bound="mask")
    assert (mean.mask_low, mean.mask_high) == (0.99, 1.01)
    said = settings(correction="geometric", correction_bound="mask", mask_low=0.5, mask_high=1.5)
    assert (said.mask_low, said.mask_high) == (0.5, 1.5)
    token = settings(correction_bound="mask")
    assert (token.mask_low, token.mask_high) == (0.5, 2.0)


# -- what follows from them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "whole", "reference"),
    [
        ({}, False, False),
        ({"kl": "k1_reward", "kl_coefficient": 0.1}, True, True),
        (KL, False, True),
        ({"normalise_weights": True}, True, False),
        ({"m2po": 0.04}, True, False),
        ({"veto": 0.1}, False, False),
        ({"veto": 0.1, "denominator": "after"}, True, False),
        ({"correction_bound": "mask", "denominator": "after"}, True, False),
        ({"overlong": "filter", "denominator": "after"}, False, False),
    ],
)
def test_what_must_be_known_before_the_first_gradient(choice: dict[str, Any], whole: bool, reference: bool) -> None:
    of = settings(**choice)
    assert (of.needs_whole_batch, of.needs_reference) == (whole, reference)


def test_a_weight_of_a_component_that_no_reward_has_is_refused_with_what_there_is() -> None:
    weighing = settings(scale="gdpo", baseline="mean", gdpo_weights={"right": 2.0, "breif": 0.5})
    with pytest.raises(Refused, match=r"gdpo_weights: the task's rewards have no breif: there are: right, brief"):
        weighing.require(("right", "brief"))
    weighing.require(("breif", "right", "length"))
    weighing.require(())  # a card that says nothing of components
    settings().require(("right",))
