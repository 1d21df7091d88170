"""A task of the user's own: a class in a Python file.

Invariant: the file's bytes are part of the task's identity, so generators with different files never serve one run.
Refuses to know what is in it.

The class is made with `options` as keyword arguments. It has `train` and `held_out`, sequences of `Problem` or of pairs
(prompt, gold), and a static method `score(completion, problem)` that returns a `Verdict`, or how correct the completion
is, from 0 to 1; `components` names what its verdicts hold beside `correct`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.errors import Refused
from producer.tasks.base import FixedTask, Part, Problem, Scoring, Verdict
from producer.tasks.named import resolve

if TYPE_CHECKING:
    from producer.tasks.settings import FileSettings

REMEDY = "see the README on tasks of your own"


def make(settings: FileSettings) -> FixedTask:
    """Raises `Refused` with what is wrong with the file."""
    kind = _named(settings.name)
    try:
        task = kind(**settings.options)
        splits = [_problems(task, name) for name in ("train", "held_out")]
    except Refused:
        raise
    except Exception as error:  # it is somebody else's program
        raise Refused(f"{settings.name} failed: {type(error).__name__}: {error}", REMEDY) from error
    train, held_out = splits[0], splits[1][: settings.held_out]
    if not train:
        raise Refused(f"{settings.name} has no problems to train on", REMEDY)
    components = tuple(dict.fromkeys(["correct", *getattr(kind, "components", ())]))
    name = str(getattr(kind, "name", settings.name.rpartition(":")[2]))
    scoring = scoring_of(f"{settings.name}.score", components)
    return FixedTask(name, tuple(train), tuple(held_out), (Part(name, scoring),))


def scoring_of(verifier: str, components: tuple[str, ...] = ("correct",)) -> Scoring:
    """Of a user's function. Raises `Refused` where there is none."""
    function = _named(verifier)
    try:
        inspect.signature(function).bind("completion", "problem")
    except TypeError as error:
        raise Refused(f"{verifier} does not take (completion, problem) ({error})", REMEDY) from None
    file = Path(verifier.rpartition(":")[0])
    source = hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix == ".py" else ""
    return Scoring("producer.tasks.custom:score", {"function": verifier}, components, source)


def score(completion: str, problem: Problem, *, function: str) -> Verdict:
    """What the user's function says; a number is how correct the completion is."""
    found = resolve(function)(completion, problem)
    if isinstance(found, Verdict):
        return found
    return Verdict(float(found), {"correct": float(found)})


def _named(name: str) -> Any:
    try:
        return resolve(name)
    except Exception as error:  # whatever an import may raise
        said = str(error).splitlines()[0] if str(error) else ""
        raise Refused(f"cannot load {name}: {type(error).__name__}: {said}", REMEDY) from error


def _problems(task: Any, split: str) -> list[Problem]:
    found: Iterable[Any] = getattr(task, split)
    out = []
    for number, item in enumerate(found, 1):
        problem = item if isinstance(item, Problem) else Problem(*item) if isinstance(item, tuple | list) else None
        if problem is None or not isinstance(problem.gold, str) or not problem.messages:
            raise Refused(f"{split}, problem {number} is neither a Problem nor a pair of prompt and gold text", REMEDY)
        out.append(problem)
    return out
