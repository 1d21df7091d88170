"""A function in a fenced block: right if it returns what every test expects, run where it can do nothing else.

Invariant: what is expected stays in this process; the program (`producer/sandbox/`) is told arguments only, and what it
says is read as literals of bounded size. Refuses to know where the tests come from and how a program is locked up.

The declared answer is the program to which the blocks of Python come (`producer/verifiers/programs.py`): what defines
the function, and the helpers that it lacks of other blocks. Of two different functions neither counts, and what stands
in the prompt is an echo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from producer.sandbox.box import Sandbox
from producer.sandbox.literals import read, same, written
from producer.tasks.base import Problem, Verdict
from producer.verifiers.answer import spoken
from producer.verifiers.fences import blocks
from producer.verifiers.programs import program

VALUE = "= "

_sandbox = Sandbox()


@dataclass(frozen=True)
class FunctionTests:
    """What `Problem.gold` holds: a function's name, and for each call its arguments and what it must return."""

    entry: str
    calls: tuple[tuple[str, str], ...]

    def encode(self) -> str:
        """As JSON."""
        return json.dumps([self.entry, self.calls])

    @classmethod
    def decode(cls, gold: str) -> FunctionTests:
        """Raises `ValueError`."""
        entry, calls = json.loads(gold)
        return cls(entry, tuple((str(given), str(expected)) for given, expected in calls))


def score(completion: str, problem: Problem, *, seconds: float = 3.0) -> Verdict:
    """1.0 if every test passes. `passed`: the share that does; `formatted`: one program is declared.

    Raises `Unavailable` where programs cannot be locked up.
    """
    tests = FunctionTests.decode(problem.gold)
    declaration = declared(completion, problem, tests.entry)
    if declaration is None:
        return Verdict(0.0, {"correct": 0.0, "passed": 0.0, "formatted": 0.0})
    lines = _sandbox.run(declaration, tests.entry, [given for given, _ in tests.calls], seconds)
    if len(lines) > len(tests.calls):
        lines = []  # it has spoken for itself
    passed = [_passes(line, expected) for line, (_, expected) in zip(lines, tests.calls, strict=False)]
    correct = float(len(passed) == len(tests.calls) and all(passed))
    share = sum(passed) / len(tests.calls)
    answer = _shown(lines, passed, tests)
    return Verdict(correct, {"correct": correct, "passed": share, "formatted": 1.0}, answer=answer)


def declared(completion: str, problem: Problem, entry: str) -> str | None:
    """The one program that defines `entry`; None where there is none, or several that are at odds."""
    texts = blocks(spoken(completion, problem))
    echoed = (any(text.strip() in content for _, content in problem.messages) for text in texts)
    return program([text for text, echo in zip(texts, echoed, strict=True) if not echo], entry)


def _passes(line: str, expected: str) -> bool:
    try:
        return line.startswith(VALUE) and same(read(expected), read(line.removeprefix(VALUE)))
    except (ValueError, RecursionError):
        return False


def _shown(lines: Sequence[str], passed: Sequence[bool], tests: FunctionTests) -> str:
    """The outcomes, what passes in the words of its test: who is right says the same. '' where nothing came back."""
    if not any(line.startswith(VALUE) for line in lines):
        return ""
    expected = (written(read(text)) for _, text in tests.calls)
    return "; ".join(
        wanted if right else line.removeprefix(VALUE)
        for line, right, wanted in zip(lines, passed, expected, strict=False)
    )
