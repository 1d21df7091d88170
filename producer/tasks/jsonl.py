"""Bring your own rows: a prompt template, an answer field, a verifier by name.

Invariant: every field that the template names is in every row. Refuses to know what the rows are about.
"""

from __future__ import annotations

import string

from broker.errors import Refused
from producer.tasks.base import FixedTask, Part, Problem, Scoring
from producer.tasks.custom import scoring_of
from producer.tasks.rows import Row, sources, splits, text, wanted
from producer.tasks.settings import JsonlSettings


def make(settings: JsonlSettings) -> FixedTask:
    """Raises `Refused`."""
    fields = _fields(settings.template)

    def read(row: Row) -> Problem:
        prompt = settings.template.format_map({field: text(row, field) for field in fields})
        level = str(row.get(settings.level_field, "")) if settings.level_field else ""
        return Problem(prompt, text(row, settings.answer_field), level)

    found = sources(settings.path, settings.held_out_path, settings.hub, settings.hub_splits)
    train, held_out = splits([wanted(source, settings.only) for source in found], read, settings.held_out)
    if ":" in settings.verifier:
        scoring = scoring_of(settings.verifier)
    else:
        verifier = f"producer.verifiers.{settings.verifier}:score"
        scoring = Scoring(verifier, {"answer": list(settings.answer)}, ("correct", "formatted"))
    return FixedTask("jsonl", train, held_out, (Part("jsonl", scoring),))


def _fields(template: str) -> list[str]:
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise Refused(f"task.template: {error}", "write {field} for a field, and {{ for a brace") from None
    if not named or any(not field.isidentifier() for field in named):
        raise Refused("task.template names no field of a row", 'write it as in "{question}"')
    return named
