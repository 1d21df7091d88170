"""Tasks by name: from a `[task]` section to problems.

Invariant: the same section and data give the same task everywhere; the run's seed has no say in it, so what is held out
of one run is held out of every run. Refuses to know what any task is about, and loads only the one that is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

from broker.errors import Refused
from producer.reward import STYLE
from producer.tasks import mixture
from producer.tasks.base import FixedTask
from producer.tasks.settings import (
    AdditionSettings,
    CodeSettings,
    CountdownSettings,
    FileSettings,
    Gsm8kSettings,
    JsonlSettings,
    MathSettings,
    MixtureSettings,
    ReasoningGymSettings,
    TaskSettings,
)

MODULES: dict[type[TaskSettings], str] = {
    AdditionSettings: "addition",
    CodeSettings: "code",
    CountdownSettings: "countdown",
    FileSettings: "custom",
    Gsm8kSettings: "gsm8k",
    JsonlSettings: "jsonl",
    MathSettings: "maths",
    ReasoningGymSettings: "gym",
}


def make_task(settings: TaskSettings) -> FixedTask:
    """The task that `[task]` describes. Raises `Refused` where its data is missing or malformed."""
    if isinstance(settings, MixtureSettings):
        return mixture.make([(make_task(part), part.weight) for part in settings.parts])
    made: FixedTask = importlib.import_module(f"producer.tasks.{MODULES[type(settings)]}").make(settings)
    return _weighed(made, settings.reward)


def _weighed(task: FixedTask, weights: dict[str, float]) -> FixedTask:
    """With the recipe's weights. Raises `Refused` for a component that nothing gives."""
    known = sorted({*STYLE, *(name for part in task.parts for name in part.scoring.components)})
    if strange := sorted(weights.keys() - set(known)):
        raise Refused(f"task.reward: {task.name} has no component {strange[0]}", f"it has {', '.join(known)}")
    return replace(task, parts=tuple(replace(part, reward=weights) for part in task.parts)) if weights else task
