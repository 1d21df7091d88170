"""Values as text: what a candidate's function returned, on its way to the one who compares it.

Invariant: a value that can be written is read back equal, and equal values of the same types have one text; what is
read is bounded in length and can be nothing but data. Refuses to know what was expected.
"""

from __future__ import annotations

import ast
import cmath
import math
import warnings
from collections import deque
from collections.abc import Sized

LONGEST = 50_000  # characters
DEEPEST = 50
TOLERANCE = 1e-9  # relative, where a float is wanted
NUMBERS = (int, float, complex)


def written(value: object, depth: int = 0) -> str:
    """A literal; subclasses count as what they derive from, a deque as a list. Raises `ValueError` for the rest."""
    if depth > DEEPEST or (isinstance(value, Sized) and len(value) > LONGEST):
        raise ValueError("too large")
    match value:
        case None | bool():
            return repr(value)
        case int():
            return repr(int.__index__(value))
        case float():
            return _float(float.__float__(value))
        case complex() if cmath.isfinite(value):
            return repr(complex.__pos__(value))
        case str():
            return ascii(str.__str__(value))
        case bytes() | bytearray():
            return repr(b"".join([value]))
    text = _container(value, depth + 1)
    if len(text) > LONGEST:
        raise ValueError("too large")
    return text


def _float(value: float) -> str:
    if math.isnan(value):
        raise ValueError("not a number")
    return repr(value) if math.isfinite(value) else repr(value).replace("inf", "1e999")


def _container(value: object, depth: int) -> str:
    match value:
        case list() | deque():
            return f"[{', '.join(written(item, depth) for item in value)}]"
        case tuple():
            items = [written(item, depth) for item in value]
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        case set() | frozenset():
            return f"{{{', '.join(sorted(written(item, depth) for item in value))}}}" if value else "set()"
        case dict():
            pairs = sorted((written(key, depth), written(item, depth)) for key, item in value.items())
            return f"{{{', '.join(f'{key}: {item}' for key, item in pairs)}}}"
    raise ValueError(f"no literal: {type(value).__name__}")


def read(text: str) -> object:
    """What a literal says. Raises `ValueError` for anything else."""
    if len(text) > LONGEST:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's opinion of how it is written
            return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no literal: {type(error).__name__}") from None


def same(wanted: object, got: object) -> bool:
    """Equal as Python has it; where a float is wanted, in lists, tuples and values of dicts too, within `TOLERANCE`.

    Raises `RecursionError` for what nests too deeply.
    """
    if isinstance(wanted, list | tuple) and isinstance(got, list | tuple):
        return type(wanted) is type(got) and len(wanted) == len(got) and all(map(same, wanted, got))
    if isinstance(wanted, dict) and isinstance(got, dict):
        return wanted.keys() == got.keys() and all(same(item, got[key]) for key, item in wanted.items())
    if isinstance(wanted, complex) and isinstance(got, NUMBERS):
        return _near(wanted.real, got.real) and _near(wanted.imag, got.imag)
    if isinstance(wanted, float) and isinstance(got, int | float):
        return _near(wanted, got)
    return wanted == got and isinstance(got, complex) <= isinstance(wanted, complex)


def _near(wanted: float, got: float) -> bool:
    try:
        return math.isclose(wanted, got, rel_tol=TOLERANCE)
    except OverflowError:  # an integer that no float comes near
        return False
