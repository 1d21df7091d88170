"""Sums of two numbers: the task a small model learns within minutes.

Invariant: the split depends on `digits` and `held_out` alone, never on the run's seed, and `a + b` lies on the same
side as `b + a`: a held-out problem is held out in every run. Refuses to know how the question is wrapped in a chat.

The declared answer is the last number of the completion. In general such a rule can be gamed (list every number, end
with a likely one); here a completion of a few tokens has room for hardly more than one, and echoing a summand scores
only where the summand is the sum.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from broker.errors import Refused
from producer.tasks.base import FixedTask, Part, Problem, Scoring, Verdict

if TYPE_CHECKING:
    from producer.tasks.settings import AdditionSettings

SCORING = Scoring("producer.tasks.addition:score")
SPLIT_SEED = "headrace addition 1"
ENUMERATED_DIGITS = 2  # up to here every pair is a problem; beyond, a sample is
SAMPLED_PAIRS = 10_000

Pair = tuple[int, int]

# A sign counts only where it cannot be a minus between two numbers; 1,234 is one number, 3,4 are two; 7.5 is one.
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def make(settings: AdditionSettings) -> FixedTask:
    """All sums of two `digits`-digit numbers (a sample of them beyond two digits). Raises `Refused`."""
    digits, held_out = settings.digits, settings.held_out
    units = list(_sampled(digits) if digits > ENUMERATED_DIGITS else _enumerated(digits))
    total = sum(len(unit) for unit in units)
    if held_out >= total:
        raise Refused(
            f"task.held_out = {held_out} leaves nothing to train on", f"{digits}-digit addition has {total} problems"
        )
    aside, rest = _split(units, held_out)
    return FixedTask("addition", _problems(rest, digits), _problems(aside, digits), (Part("addition", SCORING),))


def score(completion: str, problem: Problem) -> Verdict:
    """1.0 if the last number of the completion is the sum, else 0.0."""
    numbers = _NUMBER.findall(completion)
    # Compared as text: int() refuses numbers of thousands of digits, and a model at temperature 1 does write them.
    answer = _plain(numbers[-1]) if numbers else ""
    correct = float(answer == problem.gold)
    return Verdict(correct, {"correct": correct}, answer=answer)


def _plain(number: str) -> str:
    sign = "-" if number[0] in "-\u2212" else ""
    digits = number.lstrip("-\u2212").replace(",", "").lstrip("0") or "0"
    return digits if digits == "0" else sign + digits


def _enumerated(digits: int) -> Iterator[tuple[Pair, ...]]:
    low, high = _range(digits)
    for a in range(low, high):
        yield ((a, a),)
        yield from (((a, b), (b, a)) for b in range(a + 1, high))


def _sampled(digits: int) -> Iterator[tuple[Pair, ...]]:
    low, high = _range(digits)
    rng, seen = random.Random(f"{SPLIT_SEED} {digits}"), set[Pair]()
    while len(seen) < SAMPLED_PAIRS:
        # random() is the one method whose sequence Python promises to keep from version to version.
        a, b = (low + int(rng.random() * (high - low)) for _ in range(2))
        unordered = (min(a, b), max(a, b))
        if unordered not in seen:
            seen.add(unordered)
            yield ((a, b),)


def _range(digits: int) -> Pair:
    return (0 if digits == 1 else 10 ** (digits - 1)), 10**digits


def _split(units: list[tuple[Pair, ...]], wanted: int) -> tuple[list[Pair], list[Pair]]:
    """`wanted` pairs set aside and the rest; a unit (a pair with its mirror image) is never torn apart."""
    rng = random.Random(SPLIT_SEED)
    order = sorted(units, key=lambda _: rng.random())
    single = next(unit for unit in order if len(unit) == 1)
    order.remove(single)
    aside, rest = list[Pair](), list[Pair]()
    for unit in (*order, single):  # where one place is left no mirrored pair fits: a sum without mirror image fills it
        (aside if len(aside) + len(unit) <= wanted else rest).extend(unit)
    return aside, rest


def _problems(pairs: list[Pair], digits: int) -> tuple[Problem, ...]:
    level = f"{digits} digit{'s' if digits > 1 else ''}"
    return tuple(Problem(f"What is {a} + {b}?", str(a + b), level) for a, b in pairs)
