"""The procedural datasets of reasoning-gym, each with its own scorer.

Invariant: a problem is an entry of the dataset, made from a seed of ours; one that is trained on is never held out.
Refuses to know what any of them is about.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from broker.errors import Refused
from producer.tasks.base import FixedTask, Messages, Part, Problem, Scoring, Verdict
from producer.tasks.formats import asked
from producer.verifiers.answer import declared

if TYPE_CHECKING:
    from producer.tasks.settings import ReasoningGymSettings

TRAIN_SEED, HELD_OUT_SEED, EXAMPLES_SEED = 1_000_003, 2_000_003, 3_000_003
FORMATS = ("tags",)
SPARE = 4  # times as many as are wanted are looked at: small datasets repeat themselves


def make(settings: ReasoningGymSettings) -> FixedTask:
    """Raises `Refused`."""
    seen = set[str]()
    turns = _shown(_entries(settings, EXAMPLES_SEED, settings.examples, seen))
    held_out = _problems(settings, HELD_OUT_SEED, settings.held_out, seen, turns)
    train = _problems(settings, TRAIN_SEED, settings.problems, seen, turns)
    if not train:
        raise Refused(f"reasoning_gym's {settings.dataset} has no problem that is not held out", "lower task.held_out")
    options = {"dataset": settings.dataset, "parameters": settings.options}
    scoring = Scoring("producer.tasks.gym:score", options, ("correct", "score", "formatted"))
    return FixedTask("reasoning_gym", train, held_out, (Part(settings.dataset, scoring),))


def score(completion: str, problem: Problem, *, dataset: str, parameters: dict[str, Any]) -> Verdict:
    """`score` is what the dataset says of the declared answer, 0 to 1; `correct`: that is 1."""
    answers = list(dict.fromkeys(text.strip() for text in declared(completion, problem, FORMATS)))
    if len(answers) != 1:  # none, or several that differ
        return Verdict(0.0, {"correct": 0.0, "score": 0.0, "formatted": 0.0})
    scorer = _dataset(dataset, json.dumps(parameters), 0, 1)
    value = float(scorer.score_answer(answers[0], ast.literal_eval(problem.gold)))
    return Verdict(value, {"correct": float(value >= 1.0), "score": value, "formatted": 1.0}, answer=answers[0])


def _problems(of: ReasoningGymSettings, seed: int, count: int, seen: set[str], turns: Messages) -> tuple[Problem, ...]:
    """Up to `count` new ones, with these turns of a conversation before them."""
    return tuple(
        Problem((*turns, ("user", question)) if turns else question, _gold(entry), _level(entry))
        for entry in _entries(of, seed, count, seen)
        for question in [asked(entry["question"], FORMATS)]
    )


def _shown(entries: Sequence[dict[str, Any]]) -> Messages:
    """As turns of a conversation, with their answers."""
    return tuple(
        turn
        for entry in entries
        for turn in (
            ("user", asked(entry["question"], FORMATS)),
            ("assistant", f"<answer>{entry['answer']}</answer>"),
        )
    )


def _entries(of: ReasoningGymSettings, seed: int, count: int, seen: set[str]) -> list[dict[str, Any]]:
    """Up to `count` entries whose question is not in `seen`, which they join."""
    out: list[dict[str, Any]] = []
    entries = _dataset(of.dataset, json.dumps(of.options), seed, max(1, SPARE * count))
    for number in range(len(entries)):
        if len(out) == count:
            break
        if (entry := entries[number])["question"] not in seen:
            seen.add(entry["question"])
            out.append(entry)
    return out


def _gold(entry: dict[str, Any]) -> str:
    """The entry as a Python literal: JSON would make lists of tuples, and scorers mind. Raises `Refused`."""
    literal = repr(entry)
    try:
        travels = ast.literal_eval(literal) == entry
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        travels = False
    if not travels:
        raise Refused("the entries of this dataset hold more than plain data, and cannot travel", "choose another")
    return literal


def _level(entry: dict[str, Any]) -> str:
    difficulty = entry.get("metadata", {}).get("difficulty")
    if not isinstance(difficulty, dict) or len(difficulty) != 1:
        return ""
    ((name, value),) = difficulty.items()
    return f"{name} {value}"


@lru_cache(maxsize=8)
def _dataset(name: str, parameters: str, seed: int, size: int) -> Any:
    """Raises `Refused`."""
    try:
        gym = importlib.import_module("reasoning_gym")
    except ImportError:
        raise Refused("task reasoning_gym needs its package", "`pip install reasoning-gym`") from None
    try:
        return gym.create_dataset(name, seed=seed, size=size, **json.loads(parameters))
    except (ValueError, TypeError, AssertionError, KeyError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"reasoning_gym cannot make {name} ({said})", "see its gallery") from None
