"""Countdown: reach a target by arithmetic on given numbers, each used once.

Invariant: every problem can be solved, and any expression that reaches its target by its numbers is right; the problems
depend on the settings alone. Refuses to know how the expression was found.
"""

from __future__ import annotations

import ast
import json
import operator
import random
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from broker.errors import Refused
from producer.tasks.base import FixedTask, Part, Problem, Scoring, Verdict
from producer.verifiers.answer import declared

if TYPE_CHECKING:
    from producer.tasks.settings import CountdownSettings

SCORING = Scoring("producer.tasks.countdown:score", components=("correct", "formatted"))
SEED = "headrace countdown 1"
LONGEST = 200  # characters of an expression of six numbers, with room
FORMATS = ("tags",)
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
SPOKEN = {"×": "*", "·": "*", "÷": "/", "\u2212": "-", "\\times": "*", "\\cdot": "*", "\\div": "/", "[": "(", "]": ")"}


def make(settings: CountdownSettings) -> FixedTask:
    """Numbers are drawn and combined at random; what they come to is the target, if it may be one. Raises `Refused`."""
    rng = random.Random(f"{SEED} {settings.numbers} {settings.largest} {settings.target}")
    seen, problems = set[tuple[tuple[int, ...], Fraction]](), list[Problem]()
    wanted = settings.problems + settings.held_out
    for _ in range(200 * wanted):
        if len(problems) == wanted:
            break
        low, high = settings.numbers
        numbers = [1 + int(rng.random() * settings.largest) for _ in range(low + int(rng.random() * (high - low + 1)))]
        target = _reached(numbers, rng)
        key = (tuple(sorted(numbers)), target)
        if target.denominator == 1 and 0 < target <= settings.target and target not in numbers and key not in seen:
            seen.add(key)
            problems.append(_problem(numbers, int(target)))
    if len(problems) < wanted:
        raise Refused(
            f"there are no {wanted} different countdown problems of this kind", "ask for fewer, or larger numbers"
        )
    aside = settings.held_out
    return FixedTask("countdown", tuple(problems[aside:]), tuple(problems[:aside]), (Part("countdown", SCORING),))


def score(completion: str, problem: Problem) -> Verdict:
    """1.0 if the declared expression uses each number once and comes to the target; `formatted`: it is one at all."""
    given = json.loads(problem.gold)
    read = [found for text in declared(completion, problem, FORMATS) if (found := _read(text)) is not None]
    values = {value for value, _ in read}
    formatted = float(bool(read))
    right = len(values) == 1 and all(_solves(value, used, given) for value, used in read)
    answer = str(given["target"]) if right else str(read[-1][0]) if read else ""
    return Verdict(float(right), {"correct": float(right), "formatted": formatted}, answer=answer)


def _solves(value: Fraction, used: list[int], given: dict[str, object]) -> bool:
    numbers = given["numbers"]
    assert isinstance(numbers, list)
    return value == given["target"] and Counter(used) == Counter(numbers)


def _problem(numbers: list[int], target: int) -> Problem:
    shown = ", ".join(map(str, numbers))
    prompt = (
        f"Using the numbers {shown}, write an expression that equals {target}. Use each number exactly once, with "
        "+, -, *, / and parentheses. Write the expression, and nothing else, between <answer> and </answer>."
    )
    return Problem(prompt, json.dumps({"numbers": numbers, "target": target}), f"{len(numbers)} numbers")


def _reached(numbers: list[int], rng: random.Random) -> Fraction:
    """What some expression of all the numbers comes to; 0 where it divides by 0."""
    values = [Fraction(number) for number in numbers]
    while len(values) > 1:
        a, b = (values.pop(int(rng.random() * len(values))) for _ in range(2))
        chosen = list(OPERATORS.values())[int(rng.random() * 4)]
        if chosen is operator.truediv and b == 0:
            return Fraction(0)
        values.append(chosen(a, b))
    return values[0]


def _read(text: str) -> tuple[Fraction, list[int]] | None:
    """An expression's value, and the numbers in it; None where it is none. `… = value` is what people write."""
    for spoken, plain in SPOKEN.items():
        text = text.replace(spoken, plain)
    left, equals, right = text.strip().strip("$").partition("=")
    if len(text) > LONGEST or not re.fullmatch(r"[0-9+*/()\s-]+", left) or "**" in left or "//" in left:
        return None
    try:
        used: list[int] = []
        value = _value(ast.parse(left.strip(), mode="eval").body, used)
        if equals and value != Fraction(right.strip()):
            return None
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return value, used


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, used)
    raise ValueError("no arithmetic")
