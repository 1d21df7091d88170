"""Every objective that a recipe can ask for, loss and gradient, against the slow oracle.

The core of it, surrogate × correction × bound × proximal × aggregation, is complete; of all other axes every pair of
values meets, unless the settings refuse it; and some hundred more are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations, product
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from consumer.objective.presets import PRESETS
from consumer.objective.settings import ObjectiveSettings
from tests.consumer import oracle
from tests.consumer.ragged import LIMIT, Computed, computed, ragged

Axes = dict[str, Any]

SURROGATES: dict[str, Axes] = {
    "ppo": {"surrogate": "ppo"},
    "ppo, dual clip": {"surrogate": "ppo", "dual_clip": 1.5, "clip_low": 0.1, "clip_high": 0.4},
    "ppo, bounded ratio": {"surrogate": "ppo", "ratio_bound": 1.4},
    "pg": {"surrogate": "pg"},
    "cispo": {"surrogate": "cispo", "cispo_cap": 1.3},
    "gspo": {"surrogate": "gspo", "clip_low": 0.05, "clip_high": 0.15},
    "gmpo": {"surrogate": "gmpo", "gmpo_clip": 0.25},
    "sapo": {"surrogate": "sapo"},
    "dppo": {"surrogate": "dppo", "dppo_penalty": 0.2},
    "topr": {"surrogate": "topr"},
    "topr, sequence": {"surrogate": "topr", "ratio_level": "sequence"},
    "kimi": {"surrogate": "kimi", "kimi_temperature": 0.7},
    "kimi, sequence": {"surrogate": "kimi", "ratio_level": "sequence"},
    "oapl": {"surrogate": "oapl", "oapl_beta": 0.6},
}
BOUNDS: dict[str, Axes] = {
    "none": {"correction_bound": "none"},
    "truncate": {"correction_bound": "truncate", "truncation": 1.6},
    "mask": {"correction_bound": "mask", "mask_low": 0.6, "mask_high": 1.3},  # no inverses of each other
}
CORRECTIONS: dict[str, Axes] = {"none": {"correction": "none"}} | {
    f"{level}, {name}": {"correction": level, **bound}
    for level in ("token", "prefix", "sequence", "geometric")
    for name, bound in BOUNDS.items()
}
PROXIMAL = ["recompute", "behaviour", "loglinear"]
AGGREGATIONS = ["token_mean", "sequence_mean", "constant", "prompt_mean"]
# Every axis, and what it may say. Those of one list stand together in one choice.
AXES: dict[str, list[Axes]] = {
    "surrogate": list(SURROGATES.values()),
    "correction": list(CORRECTIONS.values()),
    "proximal": [{"proximal": kind} for kind in PROXIMAL],
    "aggregation": [
        *({"aggregation": kind} for kind in AGGREGATIONS), {"aggregation": "constant", "constant_length": 5},
    ],
    "kl": [{}, *({"kl": k, "kl_coefficient": 0.3} for k in ("k1_reward", "k1_reward_to_go", "k2", "k3", "k3_ratio"))],
    "veto": [{}, {"veto": 0.01}],
    "off_policy": [{}, {"off_policy_mask": 0.1}],
    "m2po": [{}, {"m2po": 0.3}],
    "normalise": [{}, {"normalise_weights": True}],
    "denominator": [{}, {"denominator": "after"}],
    "overlong": [{}, {"overlong": "filter"}, {"overlong": "soft", "overlong_buffer": 4}],
    "entropy": [{}, {"entropy_bonus": 0.02}],
    "baseline": [{"baseline": kind} for kind in ("leave_one_out", "mean", "none")],
    "scale": [
        {}, {"scale": "group_std"}, {"scale": "group_std", "std_ddof": 0, "std_eps": 0.1}, {"scale": "batch_std"},
        {"scale": "group_mean"}, {"scale": "batch_whiten"}, {"scale": "gdpo"},
        {"scale": "gdpo", "gdpo_weights": {"right": 1.0, "brief": -0.5}},
    ],
    "minibatches": [{}, {"minibatches": 2}],
}  # fmt: skip


def accepted(choice: Axes) -> ObjectiveSettings | None:
    """The settings, if they are."""
    try:
        return ObjectiveSettings.model_validate({k: v for k, v in choice.items() if k != "minibatches"})
    except ValidationError:
        return None


def together(choices: Iterable[Axes]) -> Axes:
    return {name: value for choice in choices for name, value in choice.items()}


def core() -> list[Axes]:
    """All that the settings accept of surrogate × correction × bound × proximal × aggregation."""
    every = product(*(AXES[name] for name in ("surrogate", "correction", "proximal", "aggregation")))
    return [{**together(choices), "minibatches": 2} for choices in every if accepted(together(choices))]


def drawn(order: random.Random) -> Axes:
    """A point on all axes; half of the time one says the first it can, or hardly any point would be accepted."""
    return together(order.choice([values[0], order.choice(values)]) for values in AXES.values())


def meaningless(pair: Axes) -> bool:
    """Whether two axes contradict each other or one silences the other, so that no settings may have both."""
    baseline, scale, surrogate = pair.get("baseline"), pair.get("scale"), pair.get("surrogate")
    proximal, correction, kl = pair.get("proximal"), pair.get("correction"), pair.get("kl")
    corrected = correction not in (None, "none") or "normalise_weights" in pair
    whole = surrogate in ("gspo", "gmpo", "oapl") or "ratio_level" in pair
    return (
        (proximal == "behaviour" and corrected)
        or (surrogate == "oapl" and (corrected or proximal not in (None, "behaviour")))
        or (correction == "none" and "normalise_weights" in pair)
        or (proximal == "loglinear" and "normalise_weights" in pair)
        or (whole and kl == "k1_reward_to_go")
        or (scale in ("gdpo", "group_mean") and baseline not in (None, "mean"))
        or (scale in ("group_std", "batch_std") and baseline == "none")
        or (scale == "batch_whiten" and baseline not in (None, "none"))
        or (scale == "gdpo" and (kl == "k1_reward" or pair.get("overlong") == "soft"))
    )


@cache
def pairwise() -> tuple[list[Axes], list[Axes]]:
    """Points in which each pair of values of two axes meets, and the pairs that no accepted point has."""
    order, points, refused = random.Random(1), list[Axes](), list[Axes]()
    met: set[tuple[str, int, str, int]] = set()
    for one, other in combinations(AXES, 2):
        for i, j in product(range(len(AXES[one])), range(len(AXES[other]))):
            if (one, i, other, j) in met:
                continue
            for _ in range(300):
                at = {n: order.randrange(len(values)) if order.random() < 0.5 else 0 for n, values in AXES.items()}
                at |= {one: i, other: j}
                point = together(AXES[n][k] for n, k in at.items())
                if accepted(point):
                    points.append(point)
                    met |= {(a, at[a], b, at[b]) for a, b in combinations(AXES, 2)}
                    break
            else:
                refused.append(together((AXES[one][i], AXES[other][j])))
    return points, refused


def agree(found: Tensor, expected: list[float], what: str, of: Axes) -> None:
    """To 1e-10 of the largest, and each to 1e-8 of itself or to what rounding leaves of the largest."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    largest = float(wanted.abs().max())
    off = (found - wanted).abs()
    assert bool(torch.isfinite(found).all()), (what, of)
    assert float(off.max()) <= 1e-10 * largest, (what, of)
    assert bool((off <= 1e-8 * wanted.abs() + 1e-11 * largest).all()), (what, of)


BATCHES = [ragged(seed) for seed in range(4)]


def check(points: Iterable[Axes]) -> Iterator[Computed]:
    for number, point in enumerate(points):
        of, minibatches = accepted(point), point.get("minibatches", 1)
        assert of is not None
        batch = BATCHES[number % len(BATCHES)]
        expected = oracle.objective(batch.answers(), of, limit=LIMIT, minibatches=minibatches)
        found = computed(batch, of, minibatches)
        agree(found.loss, expected.loss, "loss", point)
        agree(found.gradient, expected.gradient, "gradient", point)
        agree(found.by_entropy, expected.by_entropy, "entropy", point)
        for flag in ("clipped", "truncated", "masked"):
            assert getattr(found, flag).tolist() == getattr(expected, flag), (flag, point)
        yield found


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogate_correction_bound_proximal_and_aggregation_in_all_their_combinations(surrogate: str) -> None:
    points = [point for point in core() if SURROGATES[surrogate].items() <= point.items()]
    if surrogate in ("ppo", "topr", "kimi"):  # the plain ones are part of the others
        points = [p for p in points if not {"dual_clip", "ratio_bound", "ratio_level"} & set(p)]
    assert len(points) == 5 * (1 if surrogate == "oapl" else 1 + 13 + 13)
    for _ in check(points):
        pass


def test_every_two_values_of_any_two_axes() -> None:
    points, _ = pairwise()
    assert len(points) > 100
    for _ in check(points):
        pass


def test_what_the_pairs_leave_out_is_what_the_settings_refuse_and_no_more() -> None:
    pairs = (together(pair) for one, other in combinations(AXES, 2) for pair in product(AXES[one], AXES[other]))
    assert pairwise()[1] == [pair for pair in pairs if meaningless(pair)]


@pytest.mark.parametrize("seed", range(2))
def test_and_some_hundred_more_of_the_whole_product(seed: int) -> None:
    order = random.Random(seed)
    points = (drawn(order) for _ in range(1000))
    found = [point for point in points if accepted(point)][:100]
    assert len(found) == 100
    for _ in check(found):
        pass


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_every_preset(minibatches: int) -> None:
    for _ in check({"preset": preset, "minibatches": minibatches} for preset in PRESETS):
        pass


def test_the_batches_stand_on_both_sides_of_every_bound() -> None:
    """Or agreement would say little: each kind of bound acts on some tokens and spares others."""
    for surrogate, choice in SURROGATES.items():
        found = list(check([{**choice, "proximal": "behaviour", "correction": "none"}] * len(BATCHES)))
        clipped, gains = (torch.cat(c) for c in zip(*((f.clipped, f.plan.advantages) for f in found), strict=True))
        if surrogate.split(",")[0] in ("ppo", "gspo", "gmpo", "dppo"):
            for side in (gains > 0, gains < 0):
                assert 0 < int(clipped[side].sum()) < int(side.sum()), surrogate
        capped = torch.cat([f.truncated for f in found])
        assert (0 < int(capped.sum()) < len(capped)) == (surrogate.split(",")[0] in ("cispo", "topr")), surrogate
    for correction, choice in CORRECTIONS.items():
        found = list(check([choice] * len(BATCHES)))
        hit = torch.cat([f.truncated | f.masked for f in found])
        bounded = "truncate" in correction or "mask" in correction
        assert (0 < int(hit.sum()) < len(hit)) == bounded, correction
    for filtered in ({"veto": 0.01}, {"off_policy_mask": 0.1}, {"m2po": 0.3}):
        masked = torch.cat([f.masked for f in check([filtered] * len(BATCHES))])
        assert 0 < int(masked.sum()) < len(masked), filtered
