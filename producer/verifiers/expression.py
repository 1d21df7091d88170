r"""Formulas: the same value, or the same function of their variables, exactly.

Invariant: nothing is handed to the computer algebra whose size or structure could keep it busy: that is decided by
looking at the text. No text is ever evaluated as a program: the parser is a grammar of LaTeX. Refuses to know sets,
intervals and units.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

LONGEST, DIGITS, EXPONENT, FACTORIAL, OPERATIONS = 300, 60, 1000, 100, 200
_FORBIDDEN = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|in|input|include|def|write|begin|end|bigcup|bigcap|forall|exists)(?![A-Za-z])|!!|\^\s*\^"
)
_POWER = re.compile(r"\^\s*(?:\{([^{}]*)\}|(\w))")
_TOWER = re.compile(r"\^\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\^|\^\s*\w\s*\^|\^\s*\{?\s*\w+\s*\}?\s*\^")
_SMALL_TOWER = re.compile(r"\^\s*\{\s*([0-9]{1,3})\s*\^\s*\{\s*([0-9])\s*\}\s*\}")
TOWERS = 3  # of powers, one on another
_FACTORIAL = re.compile(r"(\w+|\))\s*!")
PLACES = 3  # at which two functions are compared before they are simplified


def formulas(one: str, other: str) -> tuple[Any, Any]:
    """Sympy expressions or equations, or None for what is none or would be too much; on both sides x means the same."""
    lower = _one_case(one, other)
    return formula(one, lower), formula(other, lower)


def formula(text: str, lower: bool) -> Any:
    """One of them; `lower`: a capital letter means the same as a small one."""
    text = _flattened(text)
    if not harmless(text):
        return None
    found = _parsed(text, lower)
    return found if found is not None and sympy.count_ops(found) <= OPERATIONS else None


def harmless(text: str) -> bool:
    """It is short, its numbers are, it has no towers of powers and no factorial of anything large."""
    if not 0 < len(text) <= LONGEST or _FORBIDDEN.search(text) or _TOWER.search(text):
        return False
    if any(len(digits) > DIGITS for digits in re.findall(r"[0-9]+", text)):
        return False
    for braced, single in _POWER.findall(text):
        if any(int(number) > EXPONENT for number in re.findall(r"[0-9]+", braced or single)):
            return False
    return all(what.isdigit() and int(what) <= FACTORIAL for what in _FACTORIAL.findall(text))


def _flattened(text: str) -> str:
    """Exponents like 2^{3} multiplied out where that leaves a small one; other towers stay."""
    for _ in range(TOWERS):
        text = _SMALL_TOWER.sub(_exponent, text)
    return text


def _exponent(match: re.Match[str]) -> str:
    value = int(match[1]) ** int(match[2])  # of 3 digits and 1
    return f"^{{{value}}}" if value <= EXPONENT else match.group()


def equal(one: Any, other: Any) -> bool:
    """The same value, or the same function; of equations: the same up to a factor other than 0."""
    equations = [isinstance(side, sympy.Equality) for side in (one, other)]
    if all(equations):
        first, second = one.lhs - one.rhs, other.lhs - other.rhs
        if _zero(first) or _zero(second):
            return False  # true for everything: it says nothing
        return _zero(first - second) or _zero(first + second) or _proportional(first, second)
    return not any(equations) and _zero(one - other)


def _proportional(one: Any, other: Any) -> bool:
    ratio = sympy.cancel(one / other) if other != 0 else sympy.S.Zero
    return bool(ratio.is_number and ratio != 0 and ratio.is_finite)


def _zero(difference: Any) -> bool:
    """At some rational places first, where two functions that differ almost always do; then by simplification."""
    if difference.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        return False
    rng, names = random.Random(0), sorted(difference.free_symbols, key=str)
    for _ in range(PLACES if names else 1):
        at = {name: sympy.Rational(rng.randrange(3, 97), rng.randrange(5, 41)) for name in names}
        value = sympy.N(difference.subs(at).doit(), 30)
        if value.is_number and (abs(sympy.N(value, 15)) > 1e-12) is sympy.true:
            return False
    return bool(sympy.simplify(difference) == 0)


@lru_cache(maxsize=1024)
def _parsed(text: str, lower: bool) -> Any:
    try:
        found = latex2sympy(_exact(text), conversion_config=ConversionConfig(lowercase_symbols=lower))
    except Exception:  # whatever a parser makes of a model's text: it is no formula
        return None
    if isinstance(found, list | tuple):
        found = found[0] if len(found) == 1 else None
    if isinstance(found, sympy.Expr):
        return sympy.nsimplify(found, rational=True) if found.has(sympy.Float) else found
    return found if isinstance(found, sympy.Equality) else None


def _one_case(one: str, other: str) -> bool:
    """Nobody tells x from X: no letter stands in both cases, or each side has one letter alone, in one case."""
    sides = [set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side))) for side in (one, other)]
    alone = all(len(side) <= 1 for side in sides)
    return alone or not any(letter.swapcase() in sides[0] | sides[1] for letter in sides[0] | sides[1])


def _exact(text: str) -> str:
    """Decimals as fractions, repeating ones as well: a computer's are rounded."""
    text = re.sub(r"([0-9]*)\.([0-9]*)\\overline\s*\{([0-9]{1,20})\}", _repeating, text)
    return re.sub(
        r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])",
        lambda m: f"\\frac{{{int((m[1] or '0') + m[2])}}}{{{10 ** len(m[2])}}}",
        text,
    )


def _repeating(match: re.Match[str]) -> str:
    """a.b(c): the digits up to the end of one period, less those before it, over 99…900…0."""
    whole, before, period = match[1] or "0", match[2], match[3]
    over = (10 ** len(period) - 1) * 10 ** len(before)
    return f"\\frac{{{int(whole + before + period) - int(whole + before)}}}{{{over}}}"
