"""`python -m monitoring.evaluated FOLDER`: what came of an evaluation, as a table and `summary.json`.

Invariant: figures are those of the last complete evaluation in the folder, and without one there are none. Refuses to
know how answers were judged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from broker.cli import guarded
from broker.errors import Refused
from broker.run_folder import RunFolder
from monitoring.files import replace_file
from monitoring.progress import Evaluation, Figures, Progress
from monitoring.recipe import resolved

COLUMNS = ("problems", "samples", "pass@1", "tokens", "cut off")


def latest(folder: RunFolder) -> Evaluation:
    """The last evaluation. Raises `Refused`."""
    progress = Progress(folder.steps)
    progress.read()
    found = progress.evaluation()
    if found is None:
        raise Refused(f"{folder.path} holds no evaluation yet", f"see {folder.log('learner')}")
    return found


def table(found: Evaluation, title: str) -> Table:
    """For a person, in 80 columns: all of it, and each task and level."""
    most = [k for k in sorted(found.pass_at, key=int) if k != "1"][-1:]
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAVY)
    out.add_column("")
    further = [*(f"pass@{k}" for k in most), *(f"most of {k}" for k in found.majority_at)]
    for column in (*COLUMNS[:3], *further, *COLUMNS[3:]):
        out.add_column(column, justify="right", no_wrap=True)
    for name, of in (("all", found), *((f"{of.task} {of.level}".strip(), of) for of in found.by)):
        rest = [*(of.pass_at.get(k) for k in most), *of.majority_at.values()]
        shown = [*map(_share, rest), _number(of.mean_length), _share(of.truncated_fraction)]
        out.add_row(name, str(of.problems), str(of.samples), _with_error(of), *shown)
    return out


def _with_error(of: Figures) -> str:
    return _share(of.pass_at_1) + ("" if of.pass_at_1_error is None else f" ± {of.pass_at_1_error:.2f}")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.evaluated", description="sum up an evaluation")
    parser.add_argument("folder", type=Path, help="for example runs/eval-model")
    folder = RunFolder(parser.parse_args().folder)
    found, recipe = latest(folder), resolved(folder)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    Console().print(table(found, f"{recipe.model_name}, held-out problems"))
    if found.failed:
        print(f"  {found.failed} problems could not be answered: `make dead-letters RECIPE={folder.recipe}`")
    replace_file(folder.summary, found.model_dump_json(indent=2).encode() + b"\n")
    print(f"  {folder.summary}")


if __name__ == "__main__":
    main()
