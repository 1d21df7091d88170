"""A function is right if every test says so; it counts where it is declared, and once."""

from __future__ import annotations

import pytest

from producer.tasks import Problem, Verdict
from producer.verifiers.code import FunctionTests, score
from producer.verifiers.fences import blocks
from tests.producer.sandbox.available import needs_lock

TESTS = FunctionTests(
    "mean", (("([1, 2],)", "1.5"), ("([4],)", "4.0"), ("([0.1, 0.2],)", "0.15"), ("([-1, 1, 3],)", "1.0"))
)
PROBLEM = Problem("Write a function `mean(numbers)`.", TESTS.encode())
GOOD = "def mean(numbers):\n    return sum(numbers) / len(numbers)"
FLOOR = "def mean(numbers):\n    return sum(numbers) // len(numbers)"
HELPER = "def share(x, n):\n    return x / n"
HELPED = "def mean(numbers):\n    return sum(share(x, len(numbers)) for x in numbers)"


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```\n"


def verdict(completion: str, problem: Problem = PROBLEM) -> Verdict:
    return score(completion, problem, seconds=2.0)


@needs_lock
@pytest.mark.parametrize(
    "completion",
    [
        fenced(GOOD),
        f"First I think.\n\n{fenced(GOOD)}\nThat is all.",
        fenced(GOOD, ""),
        fenced(GOOD, "py"),
        fenced(GOOD, "Python"),
        fenced(GOOD, "python3"),
        fenced(GOOD, 'python title="mean.py"'),
        fenced(GOOD).replace("\n", "\r\n"),
        f"````python\n{GOOD}\n````",
        "1. So:\n   " + fenced(GOOD).replace("\n", "\n   "),
        fenced("import statistics\nmean = statistics.fmean"),
        fenced("mean = lambda numbers: sum(numbers) / len(numbers)"),
        fenced(f"import math\n{GOOD}\nprint(mean([1]))"),
        fenced(GOOD + "\nif __name__ == '__main__':\n    raise SystemExit(1)"),
        fenced("def add(a):\n    return sum(a)") + fenced(f"def add(a):\n    return sum(a)\n\n{GOOD}"),
        fenced(GOOD) + "For example:\n" + fenced("print(mean([1, 2]))"),
        fenced(GOOD) + fenced("1.5", "text"),
        fenced(GOOD) + "Again:\n" + fenced(GOOD + "  # the same"),
        f"<think>{fenced(FLOOR)}</think>\n{fenced(GOOD)}",
        fenced(GOOD + "\nTOTAL = " + "+".join("1" * 600)) * 2,
        fenced(f"{GOOD.replace('return', 'number = 0x' + '7' * 4000 + '; return')}") * 2,
        fenced(GOOD) + fenced("def mean(numbers:\n    a slip of the pen"),
        f"1. {fenced(GOOD)}",
        "Here: " + fenced(GOOD).replace("\n", "\n   "),
        fenced(GOOD, "{python}"),
        fenced(GOOD, "{.python .numbered}"),
        fenced(GOOD, "python:solution.py"),
        f"~~~python\n{GOOD}\n~~~",
        f"A title\n~~~~~~~\n{fenced(GOOD)}",
        f"```python\n{GOOD}```",
        fenced(GOOD.replace("\n", '\n    """A block: ```"""\n')),
        fenced(GOOD.replace("\n", '\n    """As in: ```\n    """\n')),
        fenced(HELPER) + fenced(HELPED),
        fenced(HELPED) + fenced(HELPER) + fenced("assert mean([]) == 0"),
        fenced("import math")
        + fenced(f"{HELPER}\nprint(1 / 0)")
        + fenced(f"from __future__ import annotations\n{HELPED}"),
        fenced(f"{HELPER}\n{HELPED}") + fenced(f"{HELPED}\nprint(mean([1]))"),
        fenced(GOOD) + fenced(f"{GOOD}\nnumbers = [1]\nprint(mean(numbers))") + fenced("print(mean([int(input())]))"),
        fenced(GOOD) + fenced("from solution import mean\nprint(mean([3]))"),
        fenced("from statistics import fmean as mean"),
        fenced("from typing import Callable\nmean: Callable = lambda a: sum(a) / len(a)"),
        fenced("mean, other = (lambda a: sum(a) / len(a)), None"),
        fenced("try:\n    from statistics import fmean as mean\nexcept ImportError:\n    mean = None"),
        fenced(f"if True:\n    {GOOD.replace(chr(10), chr(10) + '    ')}"),
        fenced(f"import sys\n{GOOD}\nsys.exit(0)"),
        fenced(f"{GOOD}\nprint(mean([int(input())]))"),
        fenced(
            f"class Solution:\n    {GOOD.replace(chr(10), chr(10) + '    ').replace('(numbers):', '(self, numbers):')}"
        ),
    ],
)
def test_a_right_function_scores_where_it_is_declared(completion: str) -> None:
    said = verdict(completion)
    assert (said.reward, dict(said.components)) == (1.0, {"correct": 1.0, "passed": 1.0, "formatted": 1.0})


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        (GOOD, "no block"),
        ("", "nothing"),
        (f"```python\n{GOOD}", "a block without an end"),
        (f"```python {GOOD}```", "a block on a line of text"),
        (fenced(GOOD, "text"), "another language"),
        (f"Here: {fenced(GOOD, 'text')}", "another language behind text"),
        (f"Here: {fenced(GOOD, '')}", "no language behind text"),
        (f"1. {fenced(GOOD)}2. {fenced(FLOOR)}", "two that differ behind text"),
        (f"```python\n{GOOD}```\n```python\n{FLOOR}```", "two that differ, closed where they end"),
        (fenced(GOOD.replace("mean", "average")), "another name"),
        (fenced("class mean: pass"), "a class"),
        (fenced(f"class A:\n    {GOOD.replace(chr(10), chr(10) + '    ')}"), "not at the top"),
        (fenced("def mean(numbers) return 1"), "no Python"),
        (fenced(GOOD) + fenced(FLOOR), "two that differ"),
        (f"<think>{fenced(GOOD)}", "reasoning without an end"),
        (f"<think>{fenced(GOOD)}</think>", "inside the reasoning"),
        (fenced(GOOD + "#" * 20_000), "too long"),
        (fenced(GOOD) * 2 + fenced(FLOOR), "two that differ, one twice"),
        (fenced(f"{HELPER}\n{HELPED}") + fenced(f"{HELPER}  + 1\n{HELPED}"), "one function on two different helpers"),
        (fenced(HELPER) + fenced(f"{HELPER} + 1") + fenced(HELPED), "a choice of helpers"),
        (fenced(GOOD) + fenced("from statistics import median as mean"), "one that is imported and another"),
        (fenced(GOOD) + fenced("class Solution:\n    def mean(self, a): return 1"), "a function and another method"),
    ],
)
def test_what_declares_no_program_or_several_earns_nothing_and_runs_nowhere(completion: str, why: str) -> None:
    said = verdict(completion)
    assert (said.reward, dict(said.components)) == (0.0, {"correct": 0.0, "passed": 0.0, "formatted": 0.0}), why
    assert said.answer == ""


def test_what_stands_in_the_prompt_is_an_echo_of_it() -> None:
    problem = Problem(f"Mend this, and write it into a block:\n{fenced(GOOD)}", TESTS.encode())
    for echo in (problem.prompt, fenced(GOOD)):
        assert isinstance(echo, str)
        assert verdict(echo, problem).components["formatted"] == 0.0


@needs_lock
@pytest.mark.parametrize(
    ("code", "passed", "answer"),
    [
        (FLOOR, 0.5, "1; 4.0; 0.0; 1.0"),
        ("def mean(numbers):\n    return 1.5", 0.25, "1.5; 1.5; 1.5; 1.5"),
        ("def mean(numbers):\n    return numbers[9]", 0.0, ""),
        ("def mean(a):\n    return str(sum(a) / len(a))", 0.0, "'1.5'; '4.0'; '0.15000000000000002'; '1.0'"),
        ("def mean(a):\n    while len(a) > 2: pass\n    return sum(a) / len(a)", 0.75, "1.5; 4.0; 0.15"),
        ("def mean(a, b):\n    return 1.5", 0.0, ""),
    ],
)  # fmt: skip
def test_a_wrong_one_has_its_share_and_an_answer_to_vote_with(code: str, passed: float, answer: str) -> None:
    said = score(fenced(code), PROBLEM, seconds=0.5)
    assert (said.reward, said.components["passed"], said.components["formatted"]) == (0.0, passed, 1.0)
    assert said.answer == answer


@needs_lock
def test_all_that_are_right_say_the_same() -> None:
    others = ("def mean(a):\n    from fractions import Fraction\n    return float(sum(map(Fraction, a)) / len(a))",
              "def mean(a):\n    return sum(x / len(a) for x in a)")  # fmt: skip
    answers = {verdict(fenced(code)).answer for code in (GOOD, *others)}
    assert answers == {"1.5; 4.0; 0.15; 1.0"}


@needs_lock
def test_kinds_of_values_are_kept_apart_as_python_does() -> None:
    expected = ("(1, 2)", "{'a': [1.5]}", "{1, 2}", "True", "None")
    problem = Problem("?", FunctionTests("f", tuple((f"({n},)", text) for n, text in enumerate(expected))).encode())
    for pair, passed in (("(1, 2)", 1.0), ("[1, 2]", 0.8)):
        values = f"[{pair}, {{'a': [3 / 2]}}, frozenset([2, 1]), 1, None]"
        assert verdict(fenced(f"def f(n):\n    return {values}[n]"), problem).components["passed"] == passed


def test_blocks_are_found_as_they_are_written() -> None:
    text = "a\n```\n1\n```\n~~~\n```py\n  2\n\n```\n```text\n3\n```\n````\n```\n4\n````\n``` `x`\n```python\n5"
    assert blocks(text) == ["1", "  2\n", "```\n4"]
    assert blocks("```" * 5000) == blocks("```\n" + "`" * 50_000) == []
    assert blocks("```" + " " * 1_000_000 + "`\n1\n```") == []
