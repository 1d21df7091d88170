"""`make bench-verifiers`: verdicts a second that one worker of the pool gives, on one core.

The answers are the conformance table's of the tests, formulas and all, plain numbers in their natural forms, and our
own small functions, right and wrong, each in a completion of some sentences, in groups as a generator asks. Invariant:
the pool, its processes and their limits are those of a run. Refuses to know whether the verdicts are right: tests do.
"""

from __future__ import annotations

import asyncio
import json
import time

from producer.tasks import Problem, Scoring
from producer.tasks.asserts import read_asserts
from producer.tasks.code import OWN
from producer.verifiers.code import FunctionTests
from producer.verify import VerifierPool
from tests.producer.verifiers.cases import CHAPTERS

GROUP, GROUPS = 8, 400
REASONING = "First we look at what is asked, and then at each part of it in turn. " * 12


def numbers() -> list[tuple[Problem, list[str]]]:
    """Groups of numeric answers."""
    out = []
    for gold in range(GROUPS):
        forms = (
            f"{gold}",
            f"${gold}",
            f"{gold}.00",
            f"{gold} apples",
            f"{gold + 1}",
            f"{gold:,}",
            f"x = {gold}",
            "none",
        )
        out.append((Problem("How many?", str(gold)), [f"{REASONING}\n#### {form}" for form in forms]))
    return out


def formulas() -> list[tuple[Problem, list[str]]]:
    """Groups of the table's answers, right and wrong."""
    out = []
    for cases in CHAPTERS.values():
        for gold, right, wrong in cases:
            answers = [*right, *wrong]
            out.append((Problem("?", gold), [f"{REASONING} \\boxed{{{a}}}." for a in answers]))
    return out


def programs() -> list[tuple[Problem, list[str]]]:
    """Groups of functions: the right one, and one that is wrong from its first test on."""
    out = []
    for row in map(json.loads, OWN.read_text(encoding="utf-8").splitlines()):
        calls = read_asserts(row["test_list"])
        tests = FunctionTests(calls[0].entry, tuple((call.args, call.expect) for call in calls))
        codes = (row["code"], f"def {tests.entry}(*_):\n    return None")
        texts = [f"{REASONING}\n```python\n{code}\n```" for code in codes]
        out.append((Problem("?", tests.encode()), texts * (GROUP // 2)))
    return out


async def rate(scoring: Scoring, groups: list[tuple[Problem, list[str]]]) -> tuple[int, float]:
    """Verdicts, and seconds they took; the first group is not counted."""
    pool = VerifierPool([scoring], workers=1)
    await pool.start()
    try:
        await pool.verify(*groups[0])
        started = time.perf_counter()
        for problem, texts in groups[1:]:
            await pool.verify(problem, texts)
        return sum(len(texts) for _, texts in groups[1:]), time.perf_counter() - started
    finally:
        await pool.stop()


def main() -> None:
    """Entry point."""
    print("| answers | verdicts | verdicts a second, one worker |\n|---|---|---|")
    kinds = {
        "numbers (`numeric`)": (Scoring("producer.verifiers.numeric:score", {"answer": ["hashes"]}), numbers()),
        "numbers (`symbolic`)": (Scoring("producer.verifiers.symbolic:score", {"answer": ["hashes"]}), numbers()),
        "the conformance table (`symbolic`)": (Scoring("producer.verifiers.symbolic:score"), formulas()),
        "functions with tests (`code`)": (Scoring("producer.verifiers.code:score"), programs()),
    }
    for name, (scoring, groups) in kinds.items():
        count, seconds = asyncio.run(rate(scoring, groups))
        print(f"| {name} | {count} | {count / seconds:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
