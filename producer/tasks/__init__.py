"""Tasks by name. Verifier workers import this package too, so it stays light: what a task needs is loaded on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from producer.tasks.base import Problem, Task, Verdict

if TYPE_CHECKING:
    from producer.settings import TaskSettings

__all__ = ["Problem", "Task", "Verdict", "make_task"]


def make_task(settings: TaskSettings, seed: int) -> Task:
    """The task that `[task]` describes. Raises `Refused` where its data is missing or malformed.

    The run's seed is for tasks that invent problems as they go. It has no say in a split: what is held out of one run
    is held out of every run.
    """
    del seed  # neither of the tasks below invents any
    if settings.name == "addition":
        from producer.tasks import addition

        return addition.make(settings.digits, settings.held_out)
    from producer.tasks import gsm8k

    return gsm8k.make(settings.path, settings.held_out)
