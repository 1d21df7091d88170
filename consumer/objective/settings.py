"""The `[objective]` section: a preset names a point on the axes, and any axis can still be set beside it.

Invariant: whatever is configured is applied. A combination in which a setting could have no effect is refused by name,
because a correction that is quietly off is how asynchronous trainers go wrong. Refuses to know tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from broker.errors import Refused
from broker.settings import Section
from consumer.objective.axes import (
    OF_SEQUENCES,
    OWNERS,
    Aggregation,
    Baseline,
    Bound,
    Kl,
    Level,
    Proximal,
    Scale,
    Surrogate,
)
from consumer.objective.presets import PRESETS, Preset


class ObjectiveSettings(Section):
    """What is maximised, axis by axis. ρ = π/π_prox; A advantage; μ the policy that sampled; π_prox see `proximal`.

    loss = −Σ_t c_t·w_t·(gain_t − β·KL_t + η·H_t) over the tokens of a batch: c from `aggregation`, w from `correction`
    and the masks, gain from `surrogate`.
    """

    preset: Preset = Field("headrace", description="a named point on the axes; `make objectives` lists them")

    baseline: Baseline = Field("leave_one_out", description="what is taken off a reward")
    scale: Scale = Field("none", description="what it is then divided by")
    std_ddof: int = Field(1, ge=0, le=1, description="1: the sample's standard deviation")
    std_eps: float = Field(1e-6, ge=0, description="added to a standard deviation")
    gdpo_weights: dict[str, float] = Field({}, description="weight of each reward component; empty: all, at 1")

    surrogate: Surrogate = "ppo"
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.28, ge=0)
    dual_clip: float | None = Field(None, gt=1, description="A < 0: the gain is at least this times A")
    ratio_bound: float | None = Field(None, gt=1, description="A < 0: ρ is held at this before anything else")
    cispo_cap: float = Field(5.0, gt=0, description="absolute cap of ρ")
    gmpo_clip: float = Field(0.4, gt=0, description="of log ρ, on the side where it would do harm")
    sapo_temperature_positive: float = Field(1.0, gt=0)
    sapo_temperature_negative: float = Field(1.05, gt=0)
    dppo_mask: float = Field(0.2, gt=0, description="difference of probabilities π − μ")
    dppo_penalty: float = Field(1e-3, ge=0, description="times (log π/μ)²")
    kimi_temperature: float = Field(0.1, ge=0)
    oapl_beta: float = Field(1.0, gt=0)
    ratio_level: Literal["token", "sequence"] = Field("token", description="of topr's ratio and kimi's square")

    proximal: Proximal = Field("recompute", description="π_prox: π at the start of the batch, μ, or between them")
    correction: Level = Field("token", description="over what the ratio π_prox/μ of a token's weight is taken")
    correction_bound: Bound = "truncate"
    truncation: float = Field(2.0, gt=0, description="cap of that ratio; the weight is never differentiated")
    mask_low: float = Field(0.5, ge=0, description="that ratio below this: weight 0")
    mask_high: float = Field(2.0, gt=0, description="that ratio above this: weight 0")
    normalise_weights: bool = Field(False, description="divide the weights by their mean over the batch")
    veto: float | None = Field(None, gt=0, lt=1, description="drop a sequence with a token of π/μ below this")
    off_policy_mask: float | None = Field(
        None, ge=0, description="drop a sequence with A < 0 and a mean log(μ/π) above this"
    )
    m2po: float | None = Field(
        None, gt=0, description="mask harmful tokens until the second moment of their log(π/μ) is at most this"
    )

    aggregation: Aggregation = "token_mean"
    constant_length: int | None = Field(None, gt=0, description="tokens; unset: sampling.max_tokens")
    denominator: Literal["before", "after"] = Field("before", description="count tokens before or after masks")

    kl: Kl = "none"
    kl_coefficient: float = Field(0.0, ge=0, description="β, of the KL to the reference model")
    reference: str | None = Field(None, description="directory of the reference model; unset: run.model as it began")
    entropy_bonus: float = Field(0.0, ge=0, description="η, times the entropy of each token's distribution")

    degenerate: Literal["replace", "keep"] = Field("replace", description="groups whose rewards are all equal")
    overlong: Literal["none", "filter", "soft"] = Field(
        "none", description="completions cut off: as any other; weight 0; or a penalty near the limit"
    )
    overlong_buffer: int = Field(0, ge=0, description="tokens before the limit over which the penalty grows to −1")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        """Axes that are not set are the preset's; a value that could have no effect is refused."""
        if not isinstance(data, dict) or str(data.get("preset", "headrace")) not in PRESETS:
            return data
        preset = PRESETS[str(data.get("preset", "headrace"))]
        full = {**preset, **data}
        full = {**_of_the_level(full), **full}
        for name in data:
            if name in OWNERS and (axis := _idle(name, full)) and not _neutral(cls, name, data[name], preset):
                raise ValueError(
                    f"{name} = {data[name]} has no effect with {axis} = {_value(cls, full, axis)!r}: "
                    f"leave it out, or set {axis} to {' or '.join(OWNERS[name][1])}"
                )
        return full

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for broken, why in self._impossible():
            if broken:
                raise ValueError(why)
        return self

    def _impossible(self) -> list[tuple[bool, str]]:
        sequences = self.surrogate in OF_SEQUENCES + (("topr", "kimi") if self.ratio_level == "sequence" else ())
        return [
            (
                self.proximal == "behaviour" and self.correction != "none",
                f"correction = {self.correction!r} has no effect with proximal = 'behaviour', where π_prox/μ is 1: "
                "set correction = 'none', or proximal = 'recompute'",
            ),
            (
                self.baseline == "none" and self.scale in ("group_std", "batch_std", "group_mean", "gdpo"),
                f"scale = {self.scale!r} divides what a baseline has centred: set baseline = 'mean'",
            ),
            (
                self.scale in ("gdpo", "group_mean") and self.baseline != "mean",
                f"scale = {self.scale!r} divides what is centred on the group's mean: set baseline = 'mean'",
            ),
            (
                self.scale == "gdpo" and (self.overlong == "soft" or self.kl == "k1_reward"),
                "scale = 'gdpo' reads reward components: overlong = 'soft' and kl = 'k1_reward' have no effect on it",
            ),
            (
                self.scale == "batch_whiten" and self.baseline != "none",
                "scale = 'batch_whiten' moves equal rewards off 0 again: set baseline = 'none', or scale = 'batch_std'",
            ),
            (
                sequences and self.kl == "k1_reward_to_go",
                f"kl = 'k1_reward_to_go' gives each token an advantage of its own and surrogate = {self.surrogate!r} "
                "needs one for the sequence: set kl = 'k1_reward'",
            ),
            (
                (self.kl == "none") != (self.kl_coefficient == 0.0),
                "kl and kl_coefficient belong together: set kl_coefficient > 0 and a kl, or neither",
            ),
            (self.kl == "none" and self.reference is not None, "reference has no effect without kl"),
            (self.mask_low >= self.mask_high, "mask_low must be below mask_high: nothing would be left"),
            (
                (self.overlong == "soft") != (self.overlong_buffer > 0),
                "overlong = 'soft' and overlong_buffer > 0 belong together",
            ),
            (
                self.ratio_bound is not None and self.ratio_bound <= 1 + self.clip_high,
                "ratio_bound must be above 1 + clip_high: below it the clip would never act",
            ),
            (
                self.dual_clip is not None and self.ratio_bound is not None,
                "dual_clip and ratio_bound hold the same: the larger has no effect, leave one of them out",
            ),
            (
                self.denominator == "after" and not self.filters and self.overlong != "filter",
                "denominator = 'after' has no effect where nothing is masked: leave it out, or set a mask",
            ),
            (
                self.surrogate == "oapl" and (self.proximal != "behaviour" or self.correction != "none"),
                "surrogate = 'oapl' regresses on log π/μ itself: set proximal = 'behaviour' and correction = 'none'",
            ),
            (
                self.proximal == "loglinear"
                and (self.normalise_weights or (self.denominator == "after" and self.correction_bound == "mask")),
                "proximal = 'loglinear' moves with every update: its weights cannot be counted or averaged before the "
                "first: set proximal = 'recompute', or normalise_weights = false and denominator = 'before'",
            ),
        ]

    @property
    def filters(self) -> bool:
        """Some tokens may be dropped for how far π at the start of the batch is from μ."""
        masks = self.correction != "none" and self.correction_bound == "mask"
        return masks or any(f is not None for f in (self.veto, self.off_policy_mask, self.m2po))

    @property
    def needs_anchor(self) -> bool:
        """π at the start of the batch is part of it, also once π has moved on."""
        return self.proximal == "recompute" or self.filters

    @property
    def needs_reference(self) -> bool:
        """Log-probs of the reference model are part of it."""
        return self.kl != "none"

    @property
    def needs_whole_batch(self) -> bool:
        """π of every token of the batch must be known before the first gradient, or a number could not be fixed."""
        counted = self.denominator == "after" and self.filters
        return self.kl.startswith("k1_reward") or self.normalise_weights or self.m2po is not None or counted

    @property
    def overridden(self) -> dict[str, Any]:
        """The axes that differ from the preset's."""
        named = type(self).model_validate({"preset": self.preset})
        return {name: value for name, value in self if value != getattr(named, name)}

    def require(self, components: Sequence[str]) -> None:
        """Raises `Refused` where a weight is of no component of the task's rewards. A card may name none at all."""
        unknown = sorted(set(self.gdpo_weights) - set(components)) if components else []
        if unknown:
            raise Refused(
                f"objective.gdpo_weights: the task's rewards have no {', '.join(unknown)}",
                f"there are: {', '.join(components)}",
            )


def _of_the_level(data: dict[str, Any]) -> dict[str, float]:
    """The mask's bounds where none are given: a mean is held closer to 1 than a single token's ratio."""
    return {"mask_low": 0.99, "mask_high": 1.01} if data.get("correction") == "geometric" else {}


def _idle(name: str, data: dict[str, Any]) -> str:
    """The axis whose choice leaves `name` without effect, if one does."""
    while name in OWNERS:
        axis, choices = OWNERS[name]
        if _value(ObjectiveSettings, data, axis) not in choices:
            return axis
        name = axis
    return ""


def _value(cls: type[ObjectiveSettings], data: dict[str, Any], name: str) -> Any:
    return data.get(name, cls.model_fields[name].default)


def _neutral(cls: type[ObjectiveSettings], name: str, value: Any, preset: dict[str, Any]) -> bool:
    """A resolved recipe spells out every default: one that says what it would be anyway claims nothing."""
    accepted = [cls.model_fields[name].default, *([preset[name]] if name in preset else [])]
    accepted += {"mask_low": [0.99], "mask_high": [1.01]}.get(name, [])
    return any(str(value) == str(usual) or value == usual for usual in accepted)
