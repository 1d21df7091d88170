r"""Mathematics with LaTeX answers: the rows of MATH and its kin.

Invariant: the gold answer is the field `answer`, or the last box of the field `solution`; an answer counts where it is
declared and the same thing in mathematics. Refuses to know how the verifier tells that.
"""

from __future__ import annotations

from producer.tasks.base import FixedTask, Part, Problem, Scoring
from producer.tasks.formats import asked
from producer.tasks.rows import Row, sources, splits, text, wanted
from producer.tasks.settings import MathSettings

VERIFIER = "producer.verifiers.symbolic:score"
BOXES = ("\\boxed{", "\\fbox{")


def make(settings: MathSettings) -> FixedTask:
    """Raises `Refused`."""

    def read(row: Row) -> Problem:
        question = text(row, settings.problem_field)
        gold = text(row, settings.answer_field) if settings.answer_field in row else last_box(text(row, "solution"))
        level = str(row.get(settings.level_field, "")) if settings.level_field else ""
        return Problem(asked(question, settings.answer), gold, level)

    found = sources(settings.path, settings.held_out_path, settings.hub, settings.hub_splits)
    train, held_out = splits([wanted(source, settings.only) for source in found], read, settings.held_out)
    scoring = Scoring(VERIFIER, {"answer": list(settings.answer)}, ("correct", "formatted"))
    return FixedTask("math", train, held_out, (Part("math", scoring),))


def last_box(solution: str) -> str:
    """What the last box of a worked solution holds. Raises `ValueError`."""
    start = max(solution.rfind(box) + len(box) if box in solution else -1 for box in BOXES)
    depth = 1
    for at in range(start, len(solution)) if start >= 0 else ():
        depth += (solution[at] == "{") - (solution[at] == "}")
        if depth == 0:
            return solution[start:at].strip()
    raise ValueError("no \\boxed{} in the field `solution`")
