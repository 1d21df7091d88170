r"""Numbers with units: what a number is of.

Invariant: a unit that one side leaves out is forgiven, another unit is not, and nothing is converted. Refuses to know
what else an answer may be.
"""

from __future__ import annotations

import re
from fractions import Fraction

from producer.verifiers.latex import MARK, squeezed
from producer.verifiers.number import read_number

FUNCTIONS = ("sin", "cos", "tan", "cot", "log", "exp", "pi")
NUMERAL = re.compile(
    r"[-+]?\s*(?:\\frac\{[^{}]*\}\{[^{}]*\}|[0-9][0-9.,]*(?:\s*\\frac\{[^{}]*\}\{[^{}]*\}|\s*/\s*[0-9.,]+)?)"
)
UNIT = re.compile(r"\s*\x00?\s*((?:[A-Za-z./\s]|(?<=[A-Za-z])\^\{?-?[1-3]\}?|\\cdot)*?)\s*\x00?(\^\{?[23]\}?)?\s*")
ONE_LETTER_UNITS = frozenset("mgslhLVWJNKCF")
UNIT_TEXT = re.compile(r"(?:[^\W\d_]|[-/().\s]|\^\{?-?[1-3]\}?|\\cdot)*")
UNIT_WORDS = 3  # square units, dollars per hour
REMARK = re.compile(
    r"no|not|none|never|is|isn|are|or|nor|and|but|if|maybe|perhaps|either|neither|unless|wrong|false|incorrect"
    r"|correct|true|than|least|most|was|be|can|cannot|don|doesn|unknown|possibly|probably"
)
SHORT_UNITS = frozenset(
    "cm mm km kg mg ml ft in lb lbs oz hr hrs min sec mph kph yd mi rad sq cu am pm hz kw mw mol".split()  # noqa: SIM905
)


def measured(text: str) -> tuple[Fraction | None, str]:
    """A number and its unit (`%` is one); None for what is no number."""
    text = text.strip()
    if (value := read_number(text.replace(MARK, ""))) is not None:
        return value, ""
    if text.endswith("%") and (value := read_number(text[:-1])) is not None:
        return value, "%"
    if not (match := NUMERAL.match(text)) or (value := read_number(match.group().rstrip(".,"))) is None:
        return None, ""
    unit = UNIT.fullmatch(text[match.end() :])
    if not unit or not (name := re.sub(r"[\s.\x00]", "", unit[1]).casefold()) or not unit_words(unit[1]):
        return None, ""
    apart = text[match.end() : match.end() + 1].isspace()
    if MARK not in text and not all(_is_unit(word, apart) for word in re.findall(r"[A-Za-z]+", unit[1])):
        return None, ""  # 5 xy is a product
    return value, _singular(name) + squeezed(unit[2] or "").strip("{}")


def unit_words(text: str) -> bool:
    """These words behind a number may be its unit, and no remark on it."""
    words = re.findall(r"[^\W\d_]+", text.replace("\\cdot", " ").casefold())
    return bool(UNIT_TEXT.fullmatch(text)) and len(words) <= UNIT_WORDS and not any(map(REMARK.fullmatch, words))


def _is_unit(word: str, apart: bool) -> bool:
    """It is one and no product of variables; `apart`: a space stands between it and the number."""
    if len(word) == 1:
        return apart and word in ONE_LETTER_UNITS
    known = word.casefold() in SHORT_UNITS
    return known or (apart and len(word) > 2 and bool(re.search(r"[aeiouyAEIOUY]", word)) and word not in FUNCTIONS)


def _singular(name: str) -> str:
    return name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") else name


def same_measure(a: Fraction, unit: str, b: Fraction, other: str) -> bool:
    """Equal numbers of one unit, or of a unit and none; a percentage is also its number over 100."""
    if unit == other:
        return a == b
    if "%" in (unit, other):
        if {unit, other} != {"%", ""}:
            return False
        share, number = (a, b) if unit == "%" else (b, a)
        return share / 100 == number or (share == number and abs(number) > 1)
    return a == b and not (unit and other)
