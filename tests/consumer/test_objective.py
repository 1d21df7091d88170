"""Surrogates, token by token: where they agree, where their gradients end, and the default in six examples.

All on bare log-probs in float64. Every combination against the oracle: test_objective_oracle.py; bounds:
test_objective_bounds.py; with a model: test_estimator.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from consumer.objective.axes import OF_SEQUENCES
from consumer.objective.loss import Terms, token_terms
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.surrogate import SURROGATES, clipped, ppo
from consumer.objective.tokens import Tokens, importance_ratio
from tests.consumer.test_objective_oracle import SURROGATES as CHOICES

quietly = hypothesis_settings(deadline=None, database=None, derandomize=True)
logprob = st.floats(-6.0, 0.0)
rows = st.lists(st.tuples(logprob, logprob, logprob, st.floats(-2.0, 2.0)), min_size=1, max_size=20)
SEQUENCES = torch.tensor([0] * 7 + [1] + [2] * 12 + [3] * 20)


def doubles(*columns: Any) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


def tokens(
    logprobs: Tensor, anchor: Tensor, behaviour: Tensor, gains: Tensor, sequences: Tensor | None = None
) -> Tokens:
    """All of them unmasked, of a version just left; each a sequence of its own unless `sequences` say otherwise."""
    everywhere = torch.ones(len(logprobs), dtype=torch.bool)
    age, own = torch.ones(len(logprobs), dtype=torch.int64), torch.arange(len(logprobs))
    of = own if sequences is None else sequences
    return Tokens(logprobs, anchor, behaviour, gains, age, of, everywhere, ~everywhere)


def drawn(seed: int, count: int = 40) -> list[Tensor]:
    """log π, log π at the start, log μ and A of `count` tokens; ratios on both sides of every bound."""
    rng = np.random.default_rng(seed)
    anchor = rng.uniform(-4.0, -0.5, count)
    off = rng.uniform(-0.6, 0.6, count)
    return doubles(anchor + off, anchor, anchor + rng.uniform(-1.2, 1.2, count), rng.normal(size=count))


def terms_of(made: Tokens, **choice: Any) -> Terms:
    """With every coefficient 1."""
    of = ObjectiveSettings.model_validate(choice)
    return token_terms(made, torch.ones(len(made.logprobs), dtype=torch.float64), of)


def gradient(made: Tokens, **choice: Any) -> list[float]:
    terms_of(made, **choice).loss.sum().backward()
    assert made.logprobs.grad is not None
    return made.logprobs.grad.tolist()


# -- the default -----------------------------------------------------------------------------------------------------


@quietly
@given(rows)
def test_every_token_of_the_default_costs_what_the_design_says(drawn: list[tuple[float, float, float, float]]) -> None:
    """−min(π_prox/μ, 2)·min(ρA, clip(ρ, 0.8, 1.28)A)."""
    expected = []
    for x, p, m, a in drawn:
        rho = math.exp(x - p)
        expected.append(-min(math.exp(p - m), 2.0) * min(rho * a, min(max(rho, 0.8), 1.28) * a))
    found = terms_of(tokens(*doubles(*zip(*drawn, strict=True))))
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_with_the_policy_as_its_own_anchor_the_gradient_is_that_of_plain_weighted_policy_gradient() -> None:
    logprobs, _, behaviour, gains = drawn(4)
    made = tokens(logprobs.requires_grad_(), logprobs.detach(), behaviour, gains)
    weight = [min(math.exp(p - m), 2.0) for p, m in zip(logprobs.tolist(), behaviour.tolist(), strict=True)]
    assert gradient(made) == pytest.approx([-w * a for w, a in zip(weight, gains.tolist(), strict=True)])
    assert not terms_of(made).clipped.any(), "at ratio 1 no clip acts"


@pytest.mark.parametrize(
    ("ratio", "gain", "expected"),
    [
        (1.2, 1.0, 1.2), (1.4, 1.0, 1.28), (0.5, 1.0, 0.5),
        (0.5, -1.0, -0.8), (0.9, -1.0, -0.9), (3.0, -1.0, -3.0),
    ],
)  # fmt: skip
def test_the_pessimistic_minimum_in_six_examples(ratio: float, gain: float, expected: float) -> None:
    made = tokens(*doubles([math.log(ratio)], [0.0], [0.0], [gain]))
    assert ppo(made, made.anchor, ObjectiveSettings()).value.item() == pytest.approx(expected)


@quietly
@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(-2.0, 2.0, allow_subnormal=False)), min_size=1, max_size=20))
def test_the_gradient_vanishes_just_where_the_clip_says_so(drawn: list[tuple[float, float]]) -> None:
    """The zero-gradient set is exactly {A > 0, ρ > 1 + ε_high} ∪ {A < 0, ρ < 1 − ε_low} (and A = 0)."""
    ratio, gains = doubles(*zip(*drawn, strict=True))
    zeros = torch.zeros_like(ratio)
    found = gradient(tokens(ratio.log().requires_grad_(), zeros, zeros, gains))
    hit = clipped(ratio, gains, 0.2, 0.28)
    assert [slope == 0 for slope in found] == (hit | (gains == 0)).tolist()


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_where_no_policy_has_moved_every_surrogate_has_the_policy_gradient(name: str) -> None:
    """A·∇log π of each token; its mean over the sequence for those of sequences, where A is the sequence's."""
    logprobs = drawn(5)[0]
    gains = torch.tensor([1.5, -0.7, 0.0, -1.1], dtype=torch.float64)[SEQUENCES]
    made = tokens(logprobs.requires_grad_(), logprobs.detach(), logprobs.detach(), gains, SEQUENCES)
    behaviour = {"proximal": "behaviour", "correction": "none"}
    assert gradient(made, **CHOICES[name], **behaviour) == pytest.approx((-gains).tolist(), abs=1e-12)


def test_every_surrogate_that_can_be_chosen_is_one_that_there_is() -> None:
    chosen = {choice["surrogate"] for choice in CHOICES.values()}
    assert chosen == set(SURROGATES) == set(ObjectiveSettings.model_json_schema()["properties"]["surrogate"]["enum"])
    assert set(OF_SEQUENCES) < chosen


def test_a_surrogate_of_sequences_looks_at_no_other_sequence() -> None:
    logprobs, anchor, behaviour, _ = drawn(6)
    gains = torch.tensor([1.5, -0.7, 0.0, -1.1], dtype=torch.float64)[SEQUENCES]
    last = SEQUENCES == 3
    for name, choice in CHOICES.items():
        on_mu = {"proximal": "behaviour", "correction": "none"}
        whole = terms_of(tokens(logprobs, anchor, behaviour, gains, SEQUENCES), **choice, **on_mu)
        only = tokens(logprobs[last], anchor[last], behaviour[last], gains[last], SEQUENCES[last])
        alone = terms_of(only, **choice, **on_mu)
        assert torch.allclose(whole.loss[last], alone.loss, rtol=1e-12), name


def test_a_ratio_beyond_all_evidence_stays_finite() -> None:
    ratio = importance_ratio(*doubles([0.0, -200.0], [-200.0, 0.0]))
    assert ratio.tolist() == pytest.approx([math.exp(20), math.exp(-20)])
