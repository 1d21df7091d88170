"""Reads asserts such as `assert f(1, 2) == 3` into a call and what it must return.

Invariant: a test is read whole, as literals, or refused with its text; nothing of it is ever run.
Refuses to know: the candidate's code, the sandbox, and how values are compared.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One test of a function; arguments and expectation are literal text, so sets and tuples survive."""

    entry: str
    args: str
    expect: str


def read_asserts(tests: Sequence[str]) -> list[Call]:
    """The calls of all tests. Raises ValueError: an unreadable test, none, or several functions."""
    calls = [_read(test) for test in tests]
    names = sorted({call.entry for call in calls})
    if len(names) != 1:
        raise ValueError(f"the tests must call exactly one function, not {names}")
    return calls


def _read(test: str) -> Call:
    try:
        body = ast.parse(test.strip()).body
        match body:
            case [
                ast.Assert(
                    test=ast.Compare(
                        left=ast.Call(func=ast.Name(id=entry), args=args, keywords=[]),
                        ops=[ast.Eq()],
                        comparators=[expect],
                    )
                )
            ]:
                given = tuple(ast.literal_eval(argument) for argument in args)
                return Call(entry, repr(given), repr(ast.literal_eval(expect)))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read the test {test!r}: {error}") from error
    raise ValueError(f"cannot read the test {test!r}: not of the form `assert f(1, 2) == 3`")
