"""Tasks as a recipe would have them made, from a `[task]` section alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from producer.tasks import FixedTask, Problem, Verdict
from producer.tasks.named import resolve
from producer.tasks.registry import make_task
from producer.tasks.settings import AnyTask, TaskSettings


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True)
    task: AnyTask


def section(**keys: Any) -> TaskSettings:
    """A validated section. Raises `ValidationError`."""
    return _Recipe.model_validate({"task": keys}).task


def complaint(**keys: Any) -> str:
    """Why a section is refused."""
    try:
        section(**keys)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return ""


def made(**keys: Any) -> FixedTask:
    """The task. Raises `Refused`."""
    return make_task(section(**keys))


def written(file: Path, rows: Sequence[object]) -> Path:
    """JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def scored(task: FixedTask, problem: Problem, completion: str) -> Verdict:
    """By the scoring of the problem's part, in this process."""
    scoring = task.parts[problem.part].scoring
    verdict: Verdict = resolve(scoring.verifier)(completion, problem, **scoring.options)
    return verdict
