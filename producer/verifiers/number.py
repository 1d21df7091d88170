r"""Numbers as people write them, read exactly.

Invariant: what is read is a rational number that was written down (`1/2` is one), never one that was left to calculate
(`2^{10}` is not); no string takes longer than its length. Refuses to know sympy.
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST_DIGITS, MOST_EXPONENT = 400, 300
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(_DECIMAL)
_FRACTION = re.compile(rf"(?:({_DIGITS})\s*)?\\frac\{{\s*([-+]?\s*{_DECIMAL})\s*\}}\{{\s*({_DECIMAL})\s*\}}")
_SLASH = re.compile(rf"(?:({_DIGITS})\s+)?({_DECIMAL})\s*/\s*({_DECIMAL})")
_SCIENTIFIC = re.compile(
    rf"({_DECIMAL})\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^)\s*\{{?\s*([-+]?[0-9]{{1,4}})\s*\}}?"
)


def read_number(text: str) -> Fraction | None:
    r"""A number: digits with or without thousands separators, decimals, a/b, \frac{a}{b}, mixed numbers, a·10^b, signs.

    None for anything else, and for numbers too long to be meant.
    """
    text = text.strip()
    if len(text) > MOST_DIGITS:
        return None
    sign, body = 1, text
    while body[:1] in ("-", "+"):
        sign, body = (-sign if body[0] == "-" else sign), body[1:].lstrip()
        if text.count("-") + text.count("+") > 3:
            return None
    if len(body) > 2 and body[0] == "{" and body[-1] == "}":
        body = body[1:-1].strip()
    value = _unsigned(body)
    return None if value is None else sign * value


def _unsigned(body: str) -> Fraction | None:
    if _PLAIN.fullmatch(body):
        return _decimal(body)
    if match := _SCIENTIFIC.fullmatch(body):
        exponent = int(match[2])
        return _decimal(match[1]) * Fraction(10) ** exponent if abs(exponent) <= MOST_EXPONENT else None
    if match := _FRACTION.fullmatch(body) or _SLASH.fullmatch(body):
        whole, above, below = match.groups()
        top = _decimal(re.sub(r"[-+\s]", "", above)) * (-1 if "-" in above else 1)
        bottom = _decimal(below)
        if bottom == 0 or (whole and ("-" in above or top >= bottom)):
            return None  # 2 3/2 is no mixed number
        return (_decimal(whole) if whole else 0) + top / bottom
    return None


def _decimal(text: str) -> Fraction:
    text = text.replace(",", "")
    return Fraction(f"0{text}0" if text.startswith(".") or text.endswith(".") else text)
