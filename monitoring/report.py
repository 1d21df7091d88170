"""`python -m monitoring.report FOLDER …`: what came of a run, as a table, `summary.json`, `reward.png` and a page.

Invariant: `summary.json` appears whole, last, and only once the learner has ended by itself: its presence says that the
run is over, and a run that is over is never resumed. Refuses to know processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from broker.cli import guarded
from broker.errors import Refused
from broker.run_folder import RunFolder
from monitoring import charts
from monitoring.bars import figure
from monitoring.dossier import Dossier, locate
from monitoring.files import replace_file
from monitoring.page import page
from monitoring.plot import png
from monitoring.progress import RECENT, VERDICTS, Progress
from monitoring.recipe import ViewRecipe, resolved
from monitoring.watch import began

BY = ("task", "level", "problems", "pass_at_1")  # what a summary says of a task's problems of one level
MOST_ROWS = 8  # of tasks and levels, in the table
OUTCOMES = {
    "solved": ", solved: every group scores alike, above 0",
    "no signal": ", no signal: every group scores alike",
}


def read(folder: RunFolder) -> tuple[ViewRecipe, Progress]:
    """Recipe and records of a run. Raises `Refused` when there is no run, or it has neither stepped nor ended."""
    if not folder.path.is_dir():
        raise Refused(f"no run folder {folder.path}", "name one, for example runs/demo")
    recipe, progress = resolved(folder), Progress(folder.steps)
    progress.read()
    if not progress.steps and progress.outcome is None:
        raise Refused(f"{folder.path} holds no step yet", f"see {folder.log('learner')}")
    return recipe, progress


def summarise(folder: Path) -> dict[str, Any]:
    """The figures of a run. Rewards are means over all samples of all groups consumed, degenerate ones included;
    staleness is in versions and weighs each trained token alike; tokens/s and the wait fraction leave out the first
    step, whose time includes the start of the engines. Absent figures are None. Raises `Refused`.
    """
    run = RunFolder(folder)
    recipe, progress = read(run)
    start, end = progress.evaluation("start"), progress.evaluation("end")
    whole, under_way = progress.whole, progress.under_way
    since, until = began(run, progress), progress.last_time
    return {
        "run": recipe.run.name,
        "model": recipe.model_name,
        "seed": recipe.run.seed,
        "steps": progress.steps[-1].step if progress.steps else 0,
        "steps_planned": progress.steps[-1].steps if progress.steps else recipe.run.steps,
        "outcome": progress.outcome,
        "minutes": None if since is None or until is None else (until - since) / 60,
        "reward_first": progress.first(1).reward,
        "reward_first5": progress.first(RECENT).reward,
        "reward_last5": progress.last(RECENT).reward,
        "pass_at_1_start": start.pass_at_1 if start else None,
        "pass_at_1_start_samples": start.samples if start else 0,
        "pass_at_1_end": end.pass_at_1 if end else None,
        "pass_at_1_end_samples": end.samples if end else 0,
        "pass_at": {"start": start.pass_at if start else {}, "end": end.pass_at if end else {}},
        "majority_at": {"start": start.majority_at if start else {}, "end": end.majority_at if end else {}},
        "pass_at_1_end_by": [of.model_dump(include=set(BY)) for of in end.by] if end else [],
        "staleness_mean": whole.staleness_mean,
        "staleness_max": whole.staleness_max,
        "max_staleness": recipe.run.max_staleness,
        "order": recipe.learner.order,
        "pipeline_depth": recipe.learner.pipeline_depth,
        "groups": whole.groups,
        "completion_tokens_sampled": whole.sampled,
        "completion_tokens_trained": whole.trained,
        "generator_tokens_per_second": under_way.per_second(under_way.sampled),
        "learner_tokens_per_second": under_way.per_second(under_way.trained),
        "learner_wait_fraction": under_way.wait_fraction,
        "unreadable_lines": progress.unreadable,
    }


def table(s: dict[str, Any]) -> Table:
    """A summary for a person, in 80 columns."""
    out = Table(
        title=f"{s['run']}: {s['model']}, seed {s['seed']}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAVY,
        show_header=False,
    )
    out.add_column(style="dim", no_wrap=True)
    out.add_column()
    took = "" if s["minutes"] is None else f" in {s['minutes']:.1f} min"
    why = OUTCOMES.get(s["outcome"], "")
    out.add_row("optimizer steps", f"{s['steps']} of {s['steps_planned']}{took}{why}")
    out.add_row(
        "reward, all groups",
        f"{figure(s['reward_first5'])} → [bold]{figure(s['reward_last5'])}[/]  (first and last {RECENT} steps)",
    )
    out.add_row("held-out pass@1", _evaluated(s))
    for name, figures in (("pass", s["pass_at"]), ("majority", s["majority_at"])):
        for k in sorted({*figures["start"], *figures["end"]} - {"1"}, key=int)[-1:]:
            out.add_row(f"held-out {name}@{k}", " → ".join(figure(figures[at].get(k)) for at in ("start", "end")))
    for of in s["pass_at_1_end_by"][:MOST_ROWS]:
        out.add_row(f"  {of['task']} {of['level']}".rstrip(), f"{figure(of['pass_at_1'])}  ({of['problems']} problems)")
    out.add_row(
        "staleness, trained tokens",
        f"mean [bold]{figure(s['staleness_mean'])}[/], max {_count(s['staleness_max'])} of {s['max_staleness']}"
        f"  (order {s['order']}, depth {s['pipeline_depth']})",
    )
    out.add_row("groups", ", ".join(f"{s['groups'][v]} {v}" for v in VERDICTS))
    out.add_row("generators", _tokens(s["completion_tokens_sampled"], "sampled", s["generator_tokens_per_second"]))
    out.add_row("learner", _tokens(s["completion_tokens_trained"], "trained", s["learner_tokens_per_second"]))
    waited = s["learner_wait_fraction"]
    out.add_row("learner waited", "–" if waited is None else f"{waited:.0%} of the time")
    if s["unreadable_lines"]:
        out.add_row("unreadable lines", f"{s['unreadable_lines']} in steps.jsonl, left out")
    return out


def _evaluated(s: dict[str, Any]) -> str:
    start, end = s["pass_at_1_start_samples"], s["pass_at_1_end_samples"]
    if not start and not end:
        return "not evaluated"
    samples = f"{start} samples each" if start == end else f"{start} and {end} samples"
    return f"{figure(s['pass_at_1_start'])} → [bold]{figure(s['pass_at_1_end'])}[/]  ({samples})"


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _tokens(count: int, what: str, per_second: float | None) -> str:
    return f"{count:,} completion tokens {what}" + ("" if per_second is None else f", {per_second:,.0f} a second")


def write(folder: RunFolder, summary: dict[str, Any]) -> list[Path]:
    """The picture, then the figures, each whole or not at all; which ones were written. Raises `Refused`.

    The figures of a run that may still go on are not written: they would end it.
    """
    recipe, progress = read(folder)
    files = [(folder.plot, png(progress, recipe))] if progress.steps else []
    files += _page([Dossier.of(folder, recipe, progress, summary)], folder.report)
    if folder.finished or folder.model.is_dir():  # its model is the last thing that a learner writes
        files.append((folder.summary, json.dumps(summary, indent=2).encode() + b"\n"))
    _write(folder.path, files)
    return [path for path, _ in files]


def _write(folder: Path, files: Sequence[tuple[Path, bytes]]) -> None:
    try:
        for path, data in files:
            replace_file(path, data)
    except OSError as error:
        raise Refused(f"cannot write to {folder}: {error.strerror}", "free some disk, or mend its rights") from None


def side_by_side(folders: Sequence[RunFolder]) -> list[Path]:
    """Several runs on one page, beside the folder of the first. Raises `Refused`."""
    runs = [Dossier.of(folder, *read(folder), summarise(folder.path)) for folder in folders]
    name = "-".join(folder.path.name for folder in folders)[:200]
    files = _page(runs, lambda kind: folders[0].path.with_name(f"report-{name}.{kind}"))
    _write(folders[0].path.parent, files)
    return [path for path, _ in files]


def _page(runs: Sequence[Dossier], path: Callable[[str], Path]) -> list[tuple[Path, bytes]]:
    return [(path("html"), page(runs, time.time()).encode()), (path("png"), charts.png(runs))]


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.report", description="sum up a run, or several side by side")
    parser.add_argument(
        "folders", metavar="RUN", nargs="+", type=Path, help="a folder, for example runs/demo, or a name"
    )
    folder, *others = (locate(given) for given in parser.parse_args().folders)
    if others:
        print("\n".join(f"  {path}" for path in side_by_side([folder, *others])))
        return
    summary = summarise(folder.path)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # an arrow on a terminal that knows none
    Console().print(table(summary))
    written = write(folder, summary)
    for path in written:
        print(f"  {path}")
    if folder.summary not in written:
        print(f"  the run is not over: no {folder.summary.name}, so that it can go on")


if __name__ == "__main__":
    main()
