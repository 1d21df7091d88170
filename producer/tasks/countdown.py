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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
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
SIGNS = "+-*/"  # in the same order
SPOKEN = {"×": "*", "·": "*", "÷": "/", "\u2212": "-", "\\times": "*", "\\cdot": "*", "\\div": "/", "[": "(", "]": ")"}


def make(settings: CountdownSettings) -> FixedTask:
    """Numbers are drawn and combined at random; what they come to is the target, if it may be one. Raises `Refused`."""
    rng = random.Random(f"{SEED} {settings.numbers} {settings.largest} {settings.target}")
    wanted = settings.problems + settings.held_out + settings.examples
    found = list(islice(_puzzles(settings, rng, 200 * wanted), wanted))
    if len(found) < wanted:
        raise Refused(
            f"there are no {wanted} different countdown problems of this kind", "ask for fewer, or larger numbers"
        )
    shown, rest = _varied(found, settings.examples)
    turns = [turn for puzzle in shown for turn in (("user", puzzle.question), ("assistant", puzzle.solution))]
    problems = tuple(puzzle.problem(turns) for puzzle in rest)
    aside = settings.held_out
    return FixedTask("countdown", problems[aside:], problems[:aside], (Part("countdown", SCORING),))


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


@dataclass(frozen=True)
class _Puzzle:
    """Numbers, what they are to come to, and one expression that does."""

    numbers: tuple[int, ...]
    target: int
    expression: str

    @property
    def question(self) -> str:
        return (
            f"Using the numbers {', '.join(map(str, self.numbers))}, write an expression that equals {self.target}. "
            "Use each number exactly once, with +, -, *, / and parentheses. Write the expression, and nothing else, "
            "between <answer> and </answer>."
        )

    @property
    def solution(self) -> str:
        return f"<answer>{self.expression}</answer>"

    def problem(self, before: Sequence[tuple[str, str]]) -> Problem:
        """With these turns of a conversation before it."""
        prompt = (*before, ("user", self.question)) if before else self.question
        gold = json.dumps({"numbers": self.numbers, "target": self.target})
        return Problem(prompt, gold, f"{len(self.numbers)} numbers")


def _puzzles(settings: CountdownSettings, rng: random.Random, tries: int) -> Iterator[_Puzzle]:
    """Different ones."""
    seen = set[tuple[tuple[int, ...], Fraction]]()
    low, high = settings.numbers
    for _ in range(tries):
        numbers = [1 + int(rng.random() * settings.largest) for _ in range(low + int(rng.random() * (high - low + 1)))]
        target, expression = _reached(numbers, rng)
        key = (tuple(sorted(numbers)), target)
        if target.denominator == 1 and 0 < target <= settings.target and target not in numbers and key not in seen:
            seen.add(key)
            yield _Puzzle(tuple(numbers), int(target), expression)


def _varied(puzzles: list[_Puzzle], count: int) -> tuple[list[_Puzzle], list[_Puzzle]]:
    """`count` of them, each operator in turn where there is one with it, and the rest."""
    rest, chosen = list(puzzles), list[_Puzzle]()
    for number in range(count):
        wanted = SIGNS[number % len(SIGNS)]
        chosen.append(next((puzzle for puzzle in rest if wanted in puzzle.expression), rest[0]))
        rest.remove(chosen[-1])
    return chosen, rest


def _reached(numbers: list[int], rng: random.Random) -> tuple[Fraction, str]:
    """What some expression of all the numbers comes to, and the expression; 0 where it divides by 0."""
    values = [(Fraction(number), str(number)) for number in numbers]
    while len(values) > 1:
        (a, left), (b, right) = (values.pop(int(rng.random() * len(values))) for _ in range(2))
        chosen = int(rng.random() * len(OPERATORS))
        combine, sign = list(OPERATORS.values())[chosen], SIGNS[chosen]
        if combine is operator.truediv and b == 0:
            return Fraction(0), ""
        values.append((combine(a, b), f"({left} {sign} {right})" if values else f"{left} {sign} {right}"))
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
