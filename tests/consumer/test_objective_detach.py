"""What a gradient must not reach, and what must not reach a gradient: constants, NaN behind a mask, wild ratios."""

from __future__ import annotations

import math
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

from consumer.objective.loss import Terms, token_terms
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens
from consumer.plan import plan
from consumer.sheet import Sheet
from tests.consumer.ragged import LIMIT, VERSION, ragged
from tests.consumer.test_objective import drawn
from tests.consumer.test_objective_oracle import AXES, SURROGATES, Axes, accepted, together

KL = AXES["kl"]
EXTRAS: list[Axes] = [{}, {"veto": 0.3, "off_policy_mask": 0.1, "entropy_bonus": 0.1}]
SEQUENCES = torch.tensor([0] * 7 + [1] + [2] * 12 + [3] * 20)
STILL = ("anchor", "behaviour", "advantages", "reference")


def choices(surrogate: str) -> list[ObjectiveSettings]:
    """Everything that is accepted of correction × bound × proximal × KL; each second with filters and entropy."""
    every = product([SURROGATES[surrogate]], AXES["correction"], AXES["proximal"], KL)
    points = (together((*point, EXTRAS[number % 2])) for number, point in enumerate(every))
    return [of for of in map(accepted, points) if of is not None]


def columns(seed: int = 1) -> dict[str, Tensor]:
    """Everything that a gradient could get into, (N,) each."""
    logprobs, anchor, behaviour, _ = drawn(seed)
    gains = torch.tensor([1.5, -0.7, 0.4, -1.1], dtype=torch.float64)[SEQUENCES]
    reference, entropy = anchor + 0.3, logprobs.exp() + 1
    return {
        "logprobs": logprobs,
        "anchor": anchor,
        "behaviour": behaviour,
        "advantages": gains,
        "reference": reference,
        "entropy": entropy,
    }


def terms(
    of: ObjectiveSettings, given: dict[str, Tensor], mask: Tensor | None = None, sequences: Tensor = SEQUENCES
) -> Terms:
    one = torch.ones_like(sequences)
    everywhere = one == 1
    tokens = Tokens(
        given["logprobs"],
        given["anchor"],
        given["behaviour"],
        given["advantages"],
        one,
        sequences,
        everywhere if mask is None else mask,
        ~everywhere,
    )
    return token_terms(
        tokens,
        torch.full((len(sequences),), 0.025, dtype=torch.float64),
        of,
        progress=0.5,
        reference=given["reference"] if of.needs_reference else None,
        entropy=given["entropy"] if of.entropy_bonus else None,
    )


# -- what a gradient must not reach ----------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_gradient_reaches_the_policy_and_nothing_that_it_is_compared_with(surrogate: str) -> None:
    for of in choices(surrogate):
        given = {name: column.clone().requires_grad_() for name, column in columns().items()}
        found = terms(of, given)
        found.loss.sum().backward()
        assert given["logprobs"].grad is not None
        assert bool((given["logprobs"].grad != 0).any()) == bool((found.weight > 0).any()), of
        assert [name for name in STILL if given[name].grad is not None] == [], of
        assert (given["entropy"].grad is not None) == (of.entropy_bonus > 0)
        assert not found.weight.requires_grad, of


# -- what must not reach a gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_log_ratios_of_a_hundred_make_no_infinity(surrogate: str, dtype: torch.dtype) -> None:
    """±100 between any two of the policies, in all combinations of signs; in float32 e^100 is one."""
    signs = torch.tensor(list(product((0.0, 100.0, -100.0), repeat=3)) + [(0.0, 0.0, 0.0)] * 13, dtype=dtype)
    given = {name: column.to(dtype) for name, column in columns().items()}
    wild = {name: given[name] + signs[:, i] for i, name in enumerate(("anchor", "behaviour", "reference"))}
    for of in choices(surrogate)[::2]:
        logprobs = given["logprobs"].clone().requires_grad_()
        loss = terms(of, {**given, **wild, "logprobs": logprobs}).loss
        loss.sum().backward()
        assert torch.isfinite(loss).all(), of
        assert logprobs.grad is not None
        assert torch.isfinite(logprobs.grad).all(), of


MASKS = {
    "a whole sequence": SEQUENCES != 2,
    "tokens here and there": torch.arange(len(SEQUENCES)) % 3 != 1,
    "everything": torch.zeros(len(SEQUENCES), dtype=torch.bool),
}


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_what_stands_behind_a_mask_is_never_looked_at(surrogate: str) -> None:
    """Loss and gradient are those of the batch with something harmless there, and exactly 0 at the place itself."""
    cases = cycle(product(MASKS.values(), (math.nan, -math.inf, math.inf)))
    for of, (mask, poison) in zip(choices(surrogate)[::2], cases, strict=False):
        results = []
        for filling in (poison, -1.0):
            given = {name: torch.where(mask, column, filling) for name, column in columns().items()}
            given = {name: column.requires_grad_() for name, column in given.items()}
            loss = terms(of, given, mask).loss
            loss.sum().backward()
            assert given["logprobs"].grad is not None
            results.append((loss.detach(), given["logprobs"].grad))
        assert torch.equal(results[0][0], results[1][0]), of
        assert torch.equal(results[0][1], results[1][1]), of
        for values in results[0]:
            assert not values[~mask].any(), of


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_masked_token_is_as_good_as_not_there(surrogate: str) -> None:
    """Products, means and running sums over a sequence step over it."""
    for mask in list(MASKS.values())[:2]:
        for of in choices(surrogate)[::5]:
            loss = terms(of, columns(), mask).loss[mask]
            left = {name: column[mask] for name, column in columns().items()}
            without = terms(of, left, sequences=SEQUENCES[mask]).loss
            assert torch.allclose(loss, without, rtol=1e-12, atol=0), of


@pytest.mark.parametrize(
    "choice",
    [
        {"kl": "k1_reward", "kl_coefficient": 0.3},
        {"kl": "k1_reward_to_go", "kl_coefficient": 0.3, "baseline": "none", "scale": "batch_whiten"},
        {"normalise_weights": True, "correction": "sequence"},
        {"m2po": 0.2, "denominator": "after"},
        {"veto": 0.01, "off_policy_mask": 0.1, "denominator": "after"},
    ],
)
@pytest.mark.parametrize("poison", [math.nan, -math.inf])
def test_the_plan_does_not_look_behind_the_mask_either(choice: dict[str, Any], poison: float) -> None:
    """Overlong answers are filtered: nothing in the plan depends on their log-probs."""
    batch = ragged(2)
    of = ObjectiveSettings.model_validate({**choice, "overlong": "filter"})
    plans = []
    for filling in (poison, -1.0):
        sheet = Sheet.of(batch.groups)
        hidden = torch.from_numpy(sheet.truncated)[sheet.sequences]
        sheet.behaviour[hidden] = filling
        anchor, reference = (torch.where(hidden, filling, batch.column(n)) for n in ("anchor", "reference"))
        plans.append(plan(sheet, of, version=VERSION, limit=LIMIT, minibatches=2, anchor=anchor, reference=reference))
    one, other = plans
    assert torch.equal(one.mask, other.mask)
    assert 0 < int(one.mask.sum()) < len(one.mask)
    assert torch.equal(one.advantages[one.mask], other.advantages[one.mask])
    assert torch.equal(one.coefficients, other.coefficients)
    assert torch.equal(one.dropped, other.dropped)
    assert one.divisors == other.divisors
