"""The exhibit: rewards are exact expectations, the proxy can be gamed and the verifier cannot."""

from __future__ import annotations

import pytest
import torch

from benchmarks.exhibit import completions, picture, proxy, table, trained
from benchmarks.toy import END, LONGEST, addition, imitator, right

PROBLEMS = addition()


def test_every_completion_is_there_once_and_their_chances_add_up_to_one() -> None:
    tokens, lengths, counted = completions()
    assert len({(*row, n) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)}) == len(tokens) == 364
    toy = imitator(PROBLEMS, 1, 5)
    with torch.no_grad():
        chances = (toy.logprobs(PROBLEMS.prompts[:1].expand(364, -1), tokens).double() * counted).sum(1).exp()
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-6)


def test_an_expected_reward_is_the_one_the_toy_computes_itself() -> None:
    curve = trained("true", 1, steps=1, imitation=5)
    assert curve.true[0] == pytest.approx(imitator(PROBLEMS, 1, 5).expected_reward(PROBLEMS), abs=1e-9)


def test_the_best_the_proxy_can_pay_is_no_right_answer() -> None:
    which = torch.arange(len(PROBLEMS.prompts))
    honest = PROBLEMS.answers
    padded = torch.where(PROBLEMS.counted & (honest != END), honest, 0)  # the digits, and then more digits to the end
    assert bool((right(honest, which, PROBLEMS) == 1).all())
    assert bool((right(padded, which, PROBLEMS) == 0).all())
    assert bool((proxy(padded, which, PROBLEMS) == 1).all())
    assert bool((proxy(honest, which, PROBLEMS) < 1).all())
    nothing = torch.full((len(which), LONGEST), END)
    assert bool((proxy(nothing, which, PROBLEMS) == 0).all())


def test_what_is_paid_for_grows() -> None:
    curves = [trained(paid, 1, steps=20, imitation=20) for paid in ("true", "proxy")]
    paid_by_proxy = curves[1]
    assert paid_by_proxy.proxy[-1] > paid_by_proxy.proxy[0] + 0.1
    assert paid_by_proxy.tokens[-1] > paid_by_proxy.tokens[0] + 1
    assert picture(curves).startswith(b"\x89PNG")
    assert "| proxy | true |" in table(curves)
