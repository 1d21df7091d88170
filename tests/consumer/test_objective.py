"""Surrogate, correction and their product, token by token: against the formulas, and where the gradient goes.

All on bare log-probs in float64; with a model they are met again in test_estimator.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from consumer.objective.decoupled import TokenTerms, effective_sample_size, global_token_mean, token_terms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consumer.objective.correction import truncated_token_weight
from consumer.objective.surrogate import clipped, importance_ratio, ppo
from consumer.settings import ObjectiveSettings
from tests.consumer import oracle

SETTINGS = ObjectiveSettings()
FORMULA = oracle.Objective()
quietly = settings(deadline=None, database=None, derandomize=True)
logprob = st.floats(-6.0, 0.0)
tokens = st.lists(st.tuples(logprob, logprob, logprob, st.floats(-2.0, 2.0)), min_size=1, max_size=20)


def doubles(*columns: object) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


def terms_of(columns: list[Tensor], objective: ObjectiveSettings = SETTINGS) -> TokenTerms:
    logprobs, proximal, behaviour, gains = columns
    return token_terms(logprobs, proximal, behaviour, gains, objective)


def drawn(seed: int, count: int = 40) -> list[Tensor]:
    """log π, log π_prox, log μ and A of `count` tokens; ratios on both sides of every bound."""
    rng = np.random.default_rng(seed)
    proximal = rng.uniform(-4.0, -0.5, count)
    off = rng.uniform(-0.6, 0.6, count)
    return doubles(proximal + off, proximal, proximal + rng.uniform(-1.2, 1.2, count), rng.normal(size=count))


def slope(function: Callable[[float], float], at: float, step: float = 1e-6) -> float:
    return (function(at + step) - function(at - step)) / (2 * step)


# -- the loss and its gradient ---------------------------------------------------------------------------------------


@quietly
@given(tokens)
def test_every_token_costs_what_the_formula_says(rows: list[tuple[float, float, float, float]]) -> None:
    columns = doubles(*zip(*rows, strict=True))
    terms = terms_of(columns)
    expected = [oracle.token_loss(*row, FORMULA) for row in rows]
    assert terms.loss.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "cap"),
    [(0.2, 0.28, 2.0), (0.0, 0.5, 1.0), (0.9, 0.0, 0.5), (0.3, 3.0, 10.0)],
)
def test_every_bound_is_the_one_that_was_set(low: float, high: float, cap: float) -> None:
    """Bounds are asymmetric, so one that is applied to 1/ρ, or on the wrong side, shows."""
    columns = drawn(1)
    chosen = ObjectiveSettings(clip_low=low, clip_high=high, truncation=cap)
    formula = oracle.Objective(low, high, cap)
    expected = [
        oracle.token_loss(x, p, m, a, formula) for x, p, m, a in zip(*(c.tolist() for c in columns), strict=True)
    ]
    assert terms_of(columns, chosen).loss.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_the_formula_with_anchor_and_weight_held_fast() -> None:
    logprobs, proximal, behaviour, gains = drawn(2)
    logprobs.requires_grad_()
    token_terms(logprobs, proximal, behaviour, gains, SETTINGS).loss.sum().backward()
    assert logprobs.grad is not None
    rows = zip(*(c.tolist() for c in (logprobs.detach(), proximal, behaviour, gains)), strict=True)
    expected = [slope(lambda x: oracle.token_loss(x, p, m, a, FORMULA), at) for at, p, m, a in rows]
    assert logprobs.grad.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert 0 < sum(g == 0.0 for g in expected) < len(expected), "the clip takes some gradients and leaves others"


def test_anchor_and_weight_get_no_gradient_even_where_they_could() -> None:
    columns = [column.requires_grad_() for column in drawn(3)]
    terms_of(columns).loss.sum().backward()
    assert [column.grad is None for column in columns] == [False, True, True, True]


def test_with_the_policy_as_its_own_anchor_the_gradient_is_that_of_plain_weighted_policy_gradient() -> None:
    logprobs, _, behaviour, gains = drawn(4)
    logprobs.requires_grad_()
    terms = token_terms(logprobs, logprobs.detach(), behaviour, gains, SETTINGS)
    terms.loss.sum().backward()
    weight = [min(math.exp(p - m), 2.0) for p, m in zip(logprobs.tolist(), behaviour.tolist(), strict=True)]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-w * a for w, a in zip(weight, gains.tolist(), strict=True)])
    assert not terms.clipped.any(), "at ratio 1 no clip acts"
    assert terms.ratio.tolist() == [1.0] * len(weight)


# -- surrogate -------------------------------------------------------------------------------------------------------


@quietly
@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(-2.0, 2.0, allow_subnormal=False)), min_size=1, max_size=20))
def test_the_gradient_vanishes_just_where_the_clip_says_so(rows: list[tuple[float, float]]) -> None:
    """The zero-gradient set is exactly {A > 0, ρ > 1 + ε_high} ∪ {A < 0, ρ < 1 − ε_low} (and A = 0)."""
    ratio, gains = doubles(*zip(*rows, strict=True))
    ratio.requires_grad_()
    ppo(ratio, gains, 0.2, 0.28).sum().backward()
    assert ratio.grad is not None
    hit = clipped(ratio.detach(), gains, 0.2, 0.28)
    assert (ratio.grad == 0).tolist() == (hit | (gains == 0)).tolist()


@pytest.mark.parametrize(
    ("ratio", "gain", "expected"),
    [
        (1.2, 1.0, 1.2), (1.4, 1.0, 1.28), (0.5, 1.0, 0.5),
        (0.5, -1.0, -0.8), (0.9, -1.0, -0.9), (3.0, -1.0, -3.0),
    ],
)  # fmt: skip
def test_the_pessimistic_minimum_in_six_examples(ratio: float, gain: float, expected: float) -> None:
    assert ppo(torch.tensor([ratio]), torch.tensor([gain]), 0.2, 0.28).item() == pytest.approx(expected)


def test_a_ratio_beyond_all_evidence_stays_finite() -> None:
    ratio = importance_ratio(*doubles([0.0, -200.0], [-200.0, 0.0]))
    assert ratio.tolist() == pytest.approx([math.exp(20), math.exp(-20)])


# -- correction ------------------------------------------------------------------------------------------------------


def test_the_cap_is_on_the_ratio_and_not_on_its_inverse() -> None:
    """π_prox/μ: a token that the policy now likes five times better is held at 2, one it likes less is not touched."""
    proximal, behaviour = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.1, 0.5]).log()
    weight = truncated_token_weight(proximal, behaviour, 2.0)
    assert weight.tolist() == pytest.approx([2.0, 0.2])


def test_the_weight_is_never_differentiated() -> None:
    proximal, behaviour = (column.requires_grad_() for column in drawn(5)[1:3])
    assert not truncated_token_weight(proximal, behaviour, 2.0).requires_grad


# -- aggregation and diagnosis ---------------------------------------------------------------------------------------


def test_parts_of_a_batch_add_up_to_the_batch_because_the_denominator_is_fixed() -> None:
    terms = drawn(6)[0]
    whole = global_token_mean(terms, len(terms))
    parts = sum(global_token_mean(part, len(terms)) for part in terms.split([1, 7, 32]))
    assert float(whole) == pytest.approx(float(parts), rel=1e-14)
    assert float(whole) == pytest.approx(float(terms.mean()), rel=1e-14)


def test_the_effective_sample_size_falls_with_the_spread_of_the_weights() -> None:
    assert effective_sample_size(torch.full((10,), 0.7)) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([1.0] + [0.0] * 9)) == pytest.approx(0.1)
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / (2 * 10))
    assert effective_sample_size(torch.empty(0)) == 1.0
