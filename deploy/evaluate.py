"""`make eval MODEL=… TASK=…`: how good a model is at a task, without training it.

Invariant: what is evaluated is the model as it lies there, by the recipe's sampling, on held-out problems alone.
Refuses to know what flows between the processes; they are started as those of a run.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from broker.cli import guarded
from deploy.launcher import Launcher, launch
from deploy.recipe import Recipe, read

EVERY_PROBLEM = 10**6


class Examination(Launcher):
    """An evaluation of one model on this machine."""

    reporter = "monitoring.evaluated"

    def learner_command(self) -> list[str]:
        """What stands in for the learner: it publishes the model and trains nothing."""
        return [sys.executable, "-m", "consumer.examiner"]


def recipe_of(path: Path, model: str, task: str, flags: list[str]) -> Recipe:
    """The recipe at `path` with another model and, where one is named, another task, which then has its own defaults.

    The recipe's own task stays as it is: with another `held_out` some that were trained on would be held out.

    All held-out problems are asked unless a flag says otherwise. Raises `Refused`.
    """

    def another(document: dict[str, Any]) -> None:
        run, learner = document.setdefault("run", {}), document.setdefault("learner", {})
        asked = model or str(run.get("model", ""))
        run |= {"model": asked, "name": f"eval-{_plain(asked)}", "steps": 1, "deterministic": False}
        learner |= {"eval_problems": EVERY_PROBLEM, "lora_rank": 0}
        if task and task != document.get("task", {}).get("name"):
            document["task"] = {"name": task}

    return read(path, flags, another)


def _plain(model: str) -> str:
    """Enough of a model's name for a folder's."""
    parts = [part for part in re.split(r"[/:]", model) if part not in ("", ".", "..")]
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(parts[-2:]))[-40:].strip("-.") or "model"


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="headrace eval", description="evaluate a model on held-out problems")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", default="", help="directory or hub name; unset: the recipe's")
    parser.add_argument("--task", default="", help="name of a task; unset: the recipe's")
    options, flags = parser.parse_known_args()
    launch(recipe_of(options.recipe, options.model, options.task, flags), Examination)


if __name__ == "__main__":
    main()
