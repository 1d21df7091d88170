"""One number: exactly the gold one, in whatever form people write a number.

Invariant: nothing is calculated that was not: `17+1` is not 18, and `5 or 6` is neither. Refuses to know formulas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from producer.tasks.base import Problem, Verdict
from producer.verifiers.answer import judged
from producer.verifiers.latex import MARK, plain
from producer.verifiers.number import read_number

CURRENCY = re.compile(r"^([-+]?)\s*(?:US|USD|EUR|GBP|Rs\.?)?\s*[$€£¥₹]\s*")
UNIT = re.compile(r"[\s-]*[%€£]?(?:[\s-]*[A-Za-z°]+\.?(?:[\s/-]+[A-Za-z]+)*(?:\^?\{?[23]\}?|[²³])?)?\s*")
# Words behind a number that make it another number, or more than one.
NOT_UNITS = re.compile(
    r"\b(and|or|to|not|point|half|third|quarter|dozens?|score|hundred|thousand|[mbtr]+illion|plus|minus|times|over)\b",
    re.IGNORECASE,
)
VARIABLE = re.compile(r"^\s*\\?[A-Za-z]\w*(?:_\{?\w+\}?)?(?:\(\w*\))?\s*=\s*")
BEGINS = re.compile(
    r"[-+\s]*(?:\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}|[0-9.,]+(?:\s*\\frac\s*\{[^{}]*\}\s*\{[^{}]*\})?"
    r"(?:\s+[0-9]+)?(?:\s*/\s*[0-9.,]+)?(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{?[-+]?[0-9]+\}?)?)"
)


def score(completion: str, problem: Problem, *, answer: Sequence[str] = ("boxed",), tolerance: float = 0.0) -> Verdict:
    """1.0 if the declared number is the gold one, or within `tolerance` of it (absolute).

    Raises `ValueError` for a gold that is no number.
    """
    allowed = Fraction(tolerance)
    return judged(
        completion,
        problem,
        answer,
        kind="number",
        read=read,
        right=lambda gold, value: abs(value - gold) <= allowed,
    )


def read(text: str) -> Fraction | None:
    """A number with what people put around it: currency, percent sign, unit, the variable it is the value of."""
    text = plain(text).replace(MARK, " ").replace("**", "").strip().rstrip(".").strip()
    text = VARIABLE.sub("", text)
    text = CURRENCY.sub(r"\1", text).strip()
    if (value := read_number(text)) is not None:
        return value
    match = BEGINS.match(text)
    if not match:
        return None
    rest = text[match.end() :]
    if not UNIT.fullmatch(rest) or NOT_UNITS.search(rest):
        return None
    return read_number(match.group().strip().rstrip(".,"))
