"""The whole recipe: every room's sections in one validated document.

Invariant: what is written to the run's folder and handed to the processes is complete; no default is left to chance.
Refuses to know how any process uses its section.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from broker.files import replace_text
from broker.loading import load
from broker.run_folder import RunFolder
from consumer.settings import LearnerRecipe
from monitoring.settings import MonitoringSettings
from producer.settings import GeneratorRecipe


class Recipe(GeneratorRecipe, LearnerRecipe):
    """A complete experiment."""

    monitoring: MonitoringSettings = MonitoringSettings()

    def toml(self) -> str:
        """As a recipe file; secrets are left out."""
        return tomli_w.dumps(self.plain())

    def plain(self) -> dict[str, Any]:
        """As plain data without absent values and secrets."""
        document: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return document


def leave_word(recipe: Recipe) -> None:
    """Write it into the run's folder, whole, as resolved: report, ledger and top look there."""
    folder = RunFolder.of(recipe.run)
    folder.make()
    replace_text(folder.recipe, recipe.toml())


def read(path: Path, flags: list[str] | None = None, edit: Callable[[dict[str, Any]], None] | None = None) -> Recipe:
    """Load, overlay and validate; `edit` as for `load`. Raises `Refused` with one line."""
    return load(Recipe, path, flags, edit=edit)
