r"""Declared answers: what a completion says its final answer is, in the format it was asked for.

Invariant: nothing counts as declared that stands inside the reasoning, in an echo of the prompt, or outside the format.
Refuses to know what an answer means.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from producer.tasks.base import Problem, Verdict
from producer.verifiers.braces import closing

LONGEST = 2000  # characters of an answer; a longer one is none
ECHO = 24  # characters of a prompt from which on its repetition is an echo
THINK, THOUGHT = "<think>", "</think>"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
HASHES = re.compile(r"####[ \t]*(?:\n[ \t]*)?([^\n]*)")
NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212+])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")

T = TypeVar("T")


def declared(completion: str, problem: Problem, formats: Sequence[str]) -> list[str]:
    r"""The answers that are declared, in the order in which they stand.

    `boxed`: what \boxed{} or \fbox{} hold · `tags`: between <answer> and </answer> · `hashes`: behind #### to the end
    of the line (or the next line) · `last_number`: the last number, which anything with a number in it has: a model
    can list candidates and end with the likeliest.
    """
    text = spoken(completion, problem)
    found = [place for name in formats for place in FORMATS[name](text)]
    return [answer.strip() for _, answer in sorted(found) if len(answer) <= LONGEST]


def judged(
    completion: str,
    problem: Problem,
    formats: Sequence[str],
    *,
    kind: str,
    read: Callable[[str], T | None],
    right: Callable[[T, T], bool] = operator.eq,
    same: Callable[[T, T], bool] = operator.eq,
    shown: Callable[[T], str] = str,
) -> Verdict:
    """The verdict on what is declared: the last one must be readable, and all that can be read must agree with it.

    `right(gold, value)`, `same(value, last)`. Raises `ValueError` for a gold that is not of this `kind`.
    """
    gold = read(problem.gold)
    if gold is None:
        raise ValueError(f"the gold answer {problem.gold[:50]!r} is no {kind}")
    values = [read(answer) for answer in declared(completion, problem, formats)]
    last = values[-1] if values else None
    if last is None:
        return Verdict(0.0, {"correct": 0.0, "formatted": 0.0})
    agreed = all(same(value, last) for value in values[:-1] if value is not None)
    correct = float(agreed and right(gold, last))
    return Verdict(correct, {"correct": correct, "formatted": 1.0}, answer=shown(last))


def spoken(completion: str, problem: Problem) -> str:
    """What is said behind the reasoning, without echoes of the prompt; nothing where the reasoning does not end."""
    _, thought, rest = completion.rpartition(THOUGHT)
    if THINK in rest or (not thought and THINK in completion):
        return ""
    for role, content in problem.messages:
        if role != "assistant" and len(content) >= ECHO:  # an answer like an example's may be right
            rest = rest.replace(content, " ")
    return rest


def _boxed(text: str) -> list[tuple[int, str]]:
    """Outermost boxes: one inside another is a part of it. An unfinished one is none."""
    out, end = list[tuple[int, str]](), 0
    for match in BOX.finditer(text):
        if match.start() < end:
            continue
        if (at := closing(text, match.end(), 2 * LONGEST)) is not None:
            out.append((match.start(), text[match.end() : at]))
            end = at
    return out


def _last_number(text: str) -> list[tuple[int, str]]:
    found = [(match.start(), match.group()) for match in NUMBER.finditer(text)]
    return found[-1:]


FORMATS: dict[str, Callable[[str], list[tuple[int, str]]]] = {
    "boxed": _boxed,
    "tags": lambda text: [(match.start(), match[1]) for match in TAGS.finditer(text)],
    "hashes": lambda text: [(match.start(), match[1]) for match in HASHES.finditer(text)],
    "last_number": _last_number,
}
