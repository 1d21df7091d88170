"""Which run a recipe means."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import Refused
from broker.loading import load
from broker.run_folder import RunFolder
from monitoring.recipe import ViewRecipe, folder_of, resolved
from tests.monitoring.fabricated import Run


def read(path: Path) -> ViewRecipe:
    return load(ViewRecipe, path, environ={})


def users_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[run]\nname = "demo"\nmodel = "org/model"\nsteps = 5\ndirectory = "{tmp_path}"\n'
        '[sampling]\nmax_tokens = 8\n[task]\nname = "addition"\n'
    )
    return path


def test_a_view_reads_what_the_launcher_resolved(tmp_path: Path) -> None:
    run = Run(tmp_path, sections={"generator": {"count": 3}, "learner": {"order": "strict", "pipeline_depth": 4}})
    recipe = resolved(run.folder)
    assert (recipe.generator.count, recipe.learner.order, recipe.learner.pipeline_depth) == (3, "strict", 4)
    assert recipe.model_name == "smollm2-135m-instruct"


def test_a_users_recipe_means_the_newest_run_of_its_name(tmp_path: Path) -> None:
    mine = users_recipe(tmp_path)
    assert read(mine).model_name == "org/model"
    with pytest.raises(Refused, match=r"there is no run in .*demo"):
        folder_of(mine, read(mine))
    Run(tmp_path, "demo")
    assert folder_of(mine, read(mine)) == RunFolder(tmp_path / "demo")
    Run(tmp_path, "demo-2")
    assert folder_of(mine, read(mine)) == RunFolder(tmp_path / "demo-2")


def test_a_recipe_in_a_runs_folder_means_just_that_run(tmp_path: Path) -> None:
    first, second = Run(tmp_path, "demo"), Run(tmp_path, "demo-2")
    for run in (first, second):
        assert folder_of(run.folder.recipe, read(run.folder.recipe)) == run.folder
