"""Tasks: problems and how answers to them are scored. Workers and users import this package, so it stays light."""

from __future__ import annotations

from producer.tasks.base import FixedTask, Part, Problem, Scoring, Task, Verdict

__all__ = ["FixedTask", "Part", "Problem", "Scoring", "Task", "Verdict"]
