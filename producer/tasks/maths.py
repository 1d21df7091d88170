r"""Mathematics with LaTeX answers: the rows of MATH and its kin.

Invariant: the gold answer is the field `answer`, or the last box of the field `solution`; an answer counts where it is
declared and the same thing in mathematics. Refuses to know how the verifier tells that.
"""

from __future__ import annotations

from producer.tasks.base import FixedTask, Part
from producer.tasks.formats import asked, scored_by
from producer.tasks.rows import Row, problems_of, text
from producer.tasks.settings import MathSettings
from producer.verifiers.braces import closing

BOXES = ("\\boxed{", "\\fbox{")


def make(settings: MathSettings) -> FixedTask:
    """Raises `Refused`."""

    def read(row: Row) -> tuple[str, str]:
        gold = text(row, settings.answer_field) if settings.answer_field in row else last_box(text(row, "solution"))
        return asked(text(row, settings.problem_field), settings.answer), gold

    train, held_out = problems_of(settings, read)
    return FixedTask("math", train, held_out, (Part("math", scored_by("symbolic", settings.answer)),))


def last_box(solution: str) -> str:
    """What the last box of a worked solution holds. Raises `ValueError`."""
    start = max(solution.rfind(box) + len(box) if box in solution else -1 for box in BOXES)
    end = closing(solution, start) if start >= 0 else None
    if end is None:
        raise ValueError("no \\boxed{} in the field `solution`")
    return solution[start:end].strip()
