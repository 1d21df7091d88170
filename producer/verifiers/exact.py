"""Text that must be the gold text.

Invariant: nothing but case, spaces and punctuation around it is forgiven. Refuses to know what the text means.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from producer.tasks.base import Problem, Verdict
from producer.verifiers.answer import judged


def score(completion: str, problem: Problem, *, answer: Sequence[str] = ("tags",), case: bool = False) -> Verdict:
    """1.0 if the declared text is the gold one; `case`: capitals matter."""

    def read(text: str) -> str | None:
        said = normal(text)
        return (said if case else said.casefold()) or None

    return judged(completion, problem, answer, kind="text", read=read)


def normal(text: str) -> str:
    """Composed characters, single spaces, no quotation marks, asterisks or full stop around it."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()
    text = re.sub(r"^\*\*(.+)\*\*$", r"\1", text)
    while len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("$", "$")):
        text = text[1:-1].strip()
    return text.rstrip(".").strip() or text
