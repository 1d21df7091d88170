"""Programming: write a function that passes unit tests, of which the prompt shows some. Rows as in MBPP.

Invariant: a problem has tests that its prompt does not show, and no constant passes them all; where programs cannot be
locked up, there is no task. Refuses to know how a program is run (`producer/verifiers/code.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker.errors import Refused
from producer.sandbox.box import Unavailable, require
from producer.sandbox.literals import read, same
from producer.tasks.asserts import Call, read_asserts
from producer.tasks.base import FixedTask, Part, Scoring
from producer.tasks.rows import Row, problems_of, text
from producer.tasks.settings import CodeSettings
from producer.verifiers.code import FunctionTests

OWN = Path(__file__).parent / "data" / "functions.jsonl"
COMPONENTS = ("correct", "passed", "formatted")


def make(settings: CodeSettings) -> FixedTask:
    """Rows that are no problem are left out and counted. Raises `Refused`."""
    try:
        require()
    except Unavailable as error:
        raise Refused(
            f"task code: programs cannot be locked up here ({error})",
            "it needs Linux on x86_64 or aarch64, with seccomp; nothing runs outside a sandbox",
        ) from None

    def problem(row: Row) -> tuple[str, str]:
        tests = _tests(row, settings.tests_field)
        calls = read_asserts(tests)
        _check(calls, settings.shown_tests)
        gold = FunctionTests(calls[0].entry, tuple((call.args, call.expect) for call in calls))
        return _asked(text(row, settings.prompt_field), calls[0].entry, tests[: settings.shown_tests]), gold.encode()

    own = settings.path is None and settings.hub is None
    source = settings.model_copy(update={"path": OWN}) if own else settings
    train, held_out = problems_of(source, problem, leave_out=True)
    scoring = Scoring("producer.verifiers.code:score", {"seconds": settings.seconds}, COMPONENTS)
    return FixedTask("code", train, held_out, (Part("code", scoring),))


def _tests(row: Row, field: str) -> list[str]:
    tests = row.get(field)
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"needs a list of asserts in the field `{field}`")
    return tests


def _check(calls: Sequence[Call], shown: int) -> None:
    if len(calls) <= shown:
        raise ValueError(f"all of its tests would be shown ({len(calls)} of {len(calls)})")
    first, *others = (read(call.expect) for call in calls)
    if all(same(first, other) for other in others):
        raise ValueError(f"a constant passes its tests ({first!r:.50})")


def _asked(question: str, entry: str, shown: Sequence[str]) -> str:
    must = "".join(f"\n{test.strip()}" for test in shown)
    examples = f"\n\nYour code must pass:{must}" if shown else ""
    return f"{question}{examples}\n\nPut the whole function `{entry}` into one ```python block."
