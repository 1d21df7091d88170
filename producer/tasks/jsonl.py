"""Bring your own rows: a prompt template, an answer field, a verifier by name.

Invariant: every field that the template names is in every row. Refuses to know what the rows are about.
"""

from __future__ import annotations

import string

from broker.errors import Refused
from producer.tasks.base import FixedTask, Part
from producer.tasks.custom import scoring_of
from producer.tasks.formats import scored_by
from producer.tasks.rows import Row, problems_of, text
from producer.tasks.settings import JsonlSettings


def make(settings: JsonlSettings) -> FixedTask:
    """Raises `Refused`."""
    fields = _fields(settings.template)

    def read(row: Row) -> tuple[str, str]:
        prompt = settings.template.format_map({field: text(row, field) for field in fields})
        return prompt, text(row, settings.answer_field)

    train, held_out = problems_of(settings, read)
    own = ":" in settings.verifier
    scoring = scoring_of(settings.verifier) if own else scored_by(settings.verifier, settings.answer)
    return FixedTask("jsonl", train, held_out, (Part("jsonl", scoring),))


def _fields(template: str) -> list[str]:
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise Refused(f"task.template: {error}", "write {field} for a field, and {{ for a brace") from None
    if not named or any(not field.isidentifier() for field in named):
        raise Refused("task.template names no field of a row", 'write it as in "{question}"')
    return named
