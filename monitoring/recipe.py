"""What the views read of a recipe, and which folder a recipe means.

Invariant: once a run's folder holds a recipe, that one counts and no other: it is what its processes were given.
Refuses to know the rest of it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from broker.errors import Refused
from broker.loading import load
from broker.run_folder import RunFolder, current
from broker.scale import wanted
from broker.settings import BrokerSettings, RecipeBase
from monitoring.settings import MonitoringSettings


class _Part(BaseModel):
    """A section that another room owns and validates."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class GeneratorPart(_Part):
    """How many generators the launcher keeps."""

    count: int = 1


class LearnerPart(_Part):
    """What sets the staleness."""

    order: str = "ready"
    pipeline_depth: int = 2


class ViewRecipe(RecipeBase):
    """The shared sections, where the metrics are, and a few figures of both sides."""

    monitoring: MonitoringSettings = MonitoringSettings()
    generator: GeneratorPart = GeneratorPart()
    learner: LearnerPart = LearnerPart()

    @property
    def model_name(self) -> str:
        """The model's name without the directories of this machine."""
        model = self.run.model
        return Path(model).name if Path(model).is_absolute() else model


def resolved(folder: RunFolder) -> ViewRecipe:
    """The recipe that a run was given, with as many generators as it has now. Raises `Refused` when there is none."""
    recipe, count = load(ViewRecipe, folder.recipe, environ={}), wanted(folder)
    if count is None:
        return recipe
    return recipe.model_copy(update={"generator": recipe.generator.model_copy(update={"count": count})})


def folder_of(path: Path, recipe: ViewRecipe) -> RunFolder:
    """The folder of the run that goes on under the name of the recipe at `path`. Raises `Refused` if there is none."""
    folder = RunFolder.of(recipe.run)
    if path.resolve() != folder.recipe.resolve():  # a recipe that lies in a run's folder means just that run
        folder = RunFolder.of(current(recipe.run))
    if not folder.path.is_dir():
        raise Refused(f"there is no run in {folder.path}", "`make demo` starts one; see run.name and run.directory")
    return folder


def where(path: Path, recipe: ViewRecipe) -> tuple[str, BrokerSettings]:
    """The run's name and its Redis: what was given, else what the launcher wrote into the run's folder."""
    if recipe.broker.url is not None:
        return recipe.run.name, recipe.broker
    run = resolved(folder_of(path, recipe))
    return run.run.name, run.broker.model_copy(update={"password": recipe.broker.password})
