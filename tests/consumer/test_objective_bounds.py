"""Each bound is on π/μ (or π_prox/μ, π/π_prox) and on the side it names, never on the inverse.

Bounds are asymmetric here, and every expectation is met twice: it holds for the ratio, and the same bound put to the
inverse, which is what a public trainer once did, would have failed it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch

from consumer.objective.correction import filtered, second_moment_mask
from consumer.objective.loss import Terms, token_terms
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens

ON_MU = {"proximal": "behaviour", "correction": "none"}


class Case(NamedTuple):
    """Ratios of the tokens, and what is expected of each."""

    settings: dict[str, Any]
    ratios: list[float]
    gains: list[float]
    expected: list[float]


def tokens(case: Case, *, inverse: bool, moved: str) -> Tokens:
    """Tokens with these ratios: of π to the start of the batch (`moved` = "policy"), or of that to μ."""
    sign = -1.0 if inverse else 1.0
    off = torch.tensor([sign * math.log(ratio) for ratio in case.ratios], dtype=torch.float64)
    zeros, one = torch.zeros_like(off), torch.zeros(len(off), dtype=torch.int64)
    anchor = zeros if moved == "policy" else off
    gains = torch.tensor(case.gains, dtype=torch.float64)
    return Tokens(off, anchor, zeros, gains, one, torch.arange(len(off)), one == 0, one == 1)


def terms(case: Case, *, inverse: bool, moved: str) -> Terms:
    of = ObjectiveSettings.model_validate(case.settings)
    made = tokens(case, inverse=inverse, moved=moved)
    return token_terms(made, torch.ones(len(case.ratios), dtype=torch.float64), of)


RATIOS, UP, DOWN = [0.1, 0.45, 1.0, 1.7, 3.0, 6.0], [1.0] * 6, [-1.0] * 6
WEIGHTS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "truncation at 2 holds what π likes more": ({"truncation": 2.0}, [0.1, 0.45, 1.0, 1.7, 2.0, 2.0]),
    "truncation at 0.5": ({"truncation": 0.5}, [0.1, 0.45, 0.5, 0.5, 0.5, 0.5]),
    "a mask of 0.4 … 5": (
        {"correction_bound": "mask", "mask_low": 0.4, "mask_high": 5.0},
        [0.0, 0.45, 1.0, 1.7, 3.0, 0.0],
    ),
    "a mask of 0.05 … 1.5": (
        {"correction_bound": "mask", "mask_low": 0.05, "mask_high": 1.5},
        [0.1, 0.45, 1.0, 0.0, 0.0, 0.0],
    ),
    "a veto of what π has given up": ({"correction_bound": "none", "veto": 0.2}, [0.0, 0.45, 1.0, 1.7, 3.0, 6.0]),
}


@pytest.mark.parametrize("level", ["token", "prefix", "sequence", "geometric"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_bounded_by_the_ratio_of_the_policy_to_the_sampler(name: str, level: str) -> None:
    """Sequences of one token, where all levels are the same."""
    chosen, expected = WEIGHTS[name]
    case = Case({"surrogate": "pg", "correction": level, **chosen}, RATIOS, UP, expected)
    assert terms(case, inverse=False, moved="anchor").weight.tolist() == pytest.approx(expected)
    inverse = terms(case, inverse=True, moved="anchor").weight.tolist()
    acted = [not math.isclose(w, r) for w, r in zip(expected, RATIOS, strict=True)]
    assert [not math.isclose(w * r, 1) for w, r in zip(inverse, RATIOS, strict=True)] != acted, "on 1/ρ: elsewhere"


CLIPS = {
    "A > 0 is clipped above 1 + ε_high only": (UP, [False, False, False, True, True, True]),
    "A < 0 is clipped below 1 − ε_low only": (DOWN, [True, False, False, False, False, False]),
}


@pytest.mark.parametrize("surrogate", ["ppo", "gspo"])
@pytest.mark.parametrize("name", CLIPS)
def test_the_clip_is_on_the_ratio_of_the_policy_to_its_anchor(name: str, surrogate: str) -> None:
    gains, expected = CLIPS[name]
    case = Case({"surrogate": surrogate, "clip_low": 0.6, "clip_high": 0.5}, RATIOS, gains, [])
    assert terms(case, inverse=False, moved="policy").clipped.tolist() == expected
    assert terms(case, inverse=True, moved="policy").clipped.tolist() != expected


@pytest.mark.parametrize(
    ("chosen", "gains", "expected"),
    [
        ({"surrogate": "ppo", "clip_low": 0.6, "dual_clip": 2.5}, DOWN, [-0.4, -0.45, -1.0, -1.7, -2.5, -2.5]),
        ({"surrogate": "ppo", "clip_low": 0.6, "ratio_bound": 4.0}, DOWN, [-0.4, -0.45, -1.0, -1.7, -3.0, -4.0]),
        ({"surrogate": "ppo", "clip_high": 0.5, "dual_clip": 2.5}, UP, [0.1, 0.45, 1.0, 1.5, 1.5, 1.5]),
        ({"surrogate": "gmpo", "gmpo_clip": math.log(2.5)}, UP, [0.1, 0.45, 1.0, 1.7, 2.5, 2.5]),
        ({"surrogate": "gmpo", "gmpo_clip": math.log(2.5)}, DOWN, [-0.4, -0.45, -1.0, -1.7, -3.0, -6.0]),
    ],
)
def test_what_a_bounded_surrogate_gains_at_six_ratios(
    chosen: dict[str, Any], gains: list[float], expected: list[float]
) -> None:
    case = Case({**chosen, **ON_MU}, RATIOS, gains, expected)
    assert (-terms(case, inverse=False, moved="policy").loss).tolist() == pytest.approx(expected)
    assert (-terms(case, inverse=True, moved="policy").loss).tolist() != pytest.approx(expected)


@pytest.mark.parametrize(
    ("chosen", "gains", "expected"),
    [
        ({"surrogate": "cispo", "cispo_cap": 5.0}, UP, [0.1, 0.45, 1.0, 1.7, 3.0, 5.0]),
        ({"surrogate": "topr"}, UP, [1.0] * 6),
        ({"surrogate": "topr"}, DOWN, [-0.1, -0.45, -1.0, -1.0, -1.0, -1.0]),
    ],
)
def test_what_a_held_weight_makes_of_the_gradient_at_six_ratios(
    chosen: dict[str, Any], gains: list[float], expected: list[float]
) -> None:
    found = []
    for inverse in (False, True):
        made = tokens(Case({}, RATIOS, gains, expected), inverse=inverse, moved="policy")
        made.logprobs.requires_grad_()
        of = ObjectiveSettings.model_validate({**chosen, **ON_MU})
        token_terms(made, torch.ones(6, dtype=torch.float64), of).loss.sum().backward()
        assert made.logprobs.grad is not None
        found.append((-made.logprobs.grad).tolist())
    assert found[0] == pytest.approx(expected)
    assert found[1] != pytest.approx(expected) or expected == [1.0] * 6


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.5, [True, True, False, False, False, False]), (1.0, [True] + [False] * 5)]
)
def test_the_off_policy_mask_drops_losing_answers_that_the_policy_has_left_behind(
    limit: float, expected: list[bool]
) -> None:
    """DeepSeek-V3.2's D is of μ to π: mean log(μ/π) > δ. Answers that π likes better now stay."""
    of = ObjectiveSettings(off_policy_mask=limit)
    lost, won = Case({}, RATIOS, DOWN, []), Case({}, RATIOS, UP, [])
    assert filtered(tokens(lost, inverse=False, moved="anchor"), of).tolist() == expected
    assert filtered(tokens(lost, inverse=True, moved="anchor"), of).tolist() != expected
    assert not filtered(tokens(won, inverse=False, moved="anchor"), of).any()


@pytest.mark.parametrize(
    ("gains", "expected"),
    [(UP, [False, False, False, True, True, True]), (DOWN, [True, True, False, False, False, False])],
)
def test_m2po_masks_where_a_step_would_go_further_off(gains: list[float], expected: list[bool]) -> None:
    case = Case({}, RATIOS, gains, [])
    assert second_moment_mask(tokens(case, inverse=False, moved="anchor"), 0.01).tolist() == expected
    assert second_moment_mask(tokens(case, inverse=True, moved="anchor"), 0.01).tolist() != expected


@pytest.mark.parametrize(("ratio", "stays"), [(0.69, False), (0.71, True), (1.49, True), (1.51, False)])
def test_m2po_never_binds_tighter_than_its_least_bounds(ratio: float, stays: bool) -> None:
    """0.7 and 1.5 are not each other's inverse."""
    case = Case({}, [ratio], [1.0 if ratio > 1 else -1.0], [])
    assert second_moment_mask(tokens(case, inverse=False, moved="anchor"), 1e-6).tolist() == [not stays]


def test_dppo_masks_by_the_difference_of_probabilities_in_the_direction_of_the_advantage() -> None:
    """π − μ > 0.2 where A > 0, < −0.2 where A < 0; a hundredfold of next to nothing is no move."""
    policy, sampler = [0.6, 0.6, 0.3, 0.3, 1e-4], [0.3, 0.3, 0.6, 0.6, 1e-6]
    x, m = (torch.tensor(p, dtype=torch.float64).log() for p in (policy, sampler))
    one = torch.zeros(5, dtype=torch.int64)
    made = [
        Tokens(a, b, b, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).double(), one, torch.arange(5), one == 0, one == 1)
        for a, b in ((x, m), (m, x))
    ]
    of = ObjectiveSettings.model_validate({"surrogate": "dppo", **ON_MU})
    found, inverse = (token_terms(t, torch.ones(5).double(), of).clipped.tolist() for t in made)
    assert found == [True, False, False, True, False]
    assert inverse != found
