"""One letter of several choices.

Invariant: an answer that names two letters names none. Refuses to know what the choices say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from producer.tasks.base import Problem, Verdict
from producer.verifiers.answer import judged
from producer.verifiers.latex import MARK, plain

LETTER = re.compile(
    r"(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?:? *)?"
    r"[(\[{]?\s*([A-Za-z])\s*[)\]}]?(?:[.:,)\s]\s*(.*))?",
    re.IGNORECASE | re.DOTALL,
)
ANOTHER = re.compile(r"(?:^|\b(?:or|and|either)\s+|[,/&]\s*)[(\[]?[A-Za-z][)\]]?(?:$|[\s.,:)])")


def score(completion: str, problem: Problem, *, answer: Sequence[str] = ("boxed",)) -> Verdict:
    """1.0 if the declared letter is the gold one. Raises `ValueError` for a gold that is no letter."""
    return judged(completion, problem, answer, kind="letter", read=read)


def read(text: str) -> str | None:
    """`B`, `(B)`, `B.`, `B) because …`, `option B`; None for several letters, or words."""
    match = LETTER.fullmatch(plain(text).replace(MARK, " ").replace("**", "").strip())
    if not match or ANOTHER.search(match[2] or ""):
        return None
    if match[2] and not re.match(r"\s*[(\[{]?[A-Za-z]\s*[)\]}.:]", text.strip().lstrip("$\\").removeprefix("text{")):
        return None  # "a dog" begins with a letter and names none
    return match[1].upper()
