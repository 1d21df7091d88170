"""What a process on the learner's side reads of a recipe.

Invariant: none beyond those of its sections. Refuses to know what the process does.
"""

from __future__ import annotations

from consumer.settings import LearnerRecipe
from monitoring.settings import MonitoringSettings


class ProcessRecipe(LearnerRecipe):
    """The learner's recipe and where its metrics go."""

    monitoring: MonitoringSettings = MonitoringSettings()
