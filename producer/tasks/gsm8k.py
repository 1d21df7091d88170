"""Grade-school word problems (Cobbe et al. 2021): a paragraph of arithmetic whose answer is one number.

Invariant: the gold answer is the number behind `####`, and an answer counts only where it is declared and only as a
number. Refuses to know how long a completion may be or how it was sampled.
"""

from __future__ import annotations

import re

from producer.tasks.base import FixedTask, Part, Problem
from producer.tasks.formats import asked, scored_by
from producer.tasks.rows import Row, sources, splits
from producer.tasks.settings import Gsm8kSettings

HUB_NAME = "openai/gsm8k:main"


def make(settings: Gsm8kSettings) -> FixedTask:
    """The train split, and `held_out` problems of the test split. Raises `Refused`."""

    def read(row: Row) -> Problem:
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
            raise ValueError("needs the text fields `question` and `answer`")
        steps, mark, gold = answer.rpartition("####")
        gold = gold.strip().replace(",", "")
        if not mark or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", gold):
            raise ValueError("no number after `####` in its answer")
        count = len([line for line in steps.splitlines() if line.strip()])
        return Problem(asked(question, settings.answer), gold, f"{count} step{'s' if count != 1 else ''}")

    found = sources(settings.path, None, None if settings.path else HUB_NAME, ("train", "test"))
    train, held_out = splits(found, read, settings.held_out)
    return FixedTask("gsm8k", train, held_out, (Part("gsm8k", scored_by("numeric", settings.answer)),))
