"""A run as one screen of 80 columns and 24 rows.

Invariant: no row is wider than the terminal or 100 columns, and all rows together fit 24 whatever the run has done.
Refuses to know where figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitoring.endpoints import Answer
from monitoring.lines import minutes
from monitoring.progress import RECENT, VERDICTS, Evaluation, Progress, Stretch
from monitoring.watch import SILENT_SECONDS, Sight

BARS = " ▁▂▃▄▅▆▇█"
WIDEST = 100
LABEL = 12
SPARK, PROGRESS, SPEED, COUNT = 32, 20, 20, 12  # cells
MOST_AGES, AGE_ROWS, AGE_CELLS = 12, 2, 5
ROUTINE, GOOD, BAD, WRONG = "dim", "green", "yellow", "red"
GENERATOR_WAITS = {"engine": "starting the engine", "learner": "waits for the learner"}
LEARNER_WAITS = {
    "none": "busy",
    "model": "loads the model",
    "batch": "waits for groups",
    "ticket": "waits for ticket",
    "no live generator": "waits: no live generator",
    "publish": "waits for a publication",
    "task card": "waits for a generator to register the task",
    "replay": "repeats",
    "evaluation": "waits for the evaluation",
    "checkpoint": "waits for the checkpoint",
}


def panel(sight: Sight, width: int) -> RenderableType:
    """The whole screen; before the first step only what is known by then."""
    blocks = [_header(sight, min(width, WIDEST))]
    progress = sight.progress
    if progress.steps or progress.evaluations:
        blocks.append(_grid([("reward", _reward(progress)), ("pass@1", _evaluations(progress))]))
    if progress.steps:
        blocks.append(_grid([("staleness", _staleness(sight)), ("", _ages(sight))]))
    if sides := _sides(sight):
        blocks.append(_grid(sides))
    if progress.steps:
        blocks.append(_grid(_groups(progress)))
    return Group(*[row for block in blocks for row in (block, Text(""))][:-1])


def spark(values: Sequence[float], cells: int) -> str:
    """Values as bars on the scale 0 … 1, wider if they are; more values than cells are averaged."""
    low, high = min([0.0, *values]), max([1.0, *values])
    cells = min(cells, len(values))
    edges = [round(i * len(values) / cells) for i in range(cells + 1)] if cells else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(BARS[1 + min(7, int(8 * (mean - low) / (high - low)))] for mean in means)


def _grid(rows: Sequence[tuple[str, RenderableType]]) -> Table:
    table = Table.grid(padding=0)
    table.add_column(width=LABEL, min_width=LABEL)
    table.add_column(overflow="ellipsis", no_wrap=True)
    for label, content in rows:
        table.add_row(f" {label}", content)
    return table


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _header(sight: Sight, width: int) -> RenderableType:
    title = Table.grid(padding=(0, 1))
    title.width = width - 1
    title.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    title.add_column(no_wrap=True, justify="right")
    name = Text.assemble((" headrace ", "bold reverse cyan"), "  ", (sight.recipe.run.name, "bold"))
    name.append(f"  {sight.recipe.model_name}", ROUTINE)
    style = BAD if sight.status in ("not running", "no signal") else GOOD
    status = Text(sight.status, f"bold {style}")
    if sight.going and sight.status_since is not None:
        status.append(f" · {minutes(sight.now - sight.status_since)}", ROUTINE)
    title.add_row(name, status)
    return Group(title, _grid([("step", _progress(sight, width - LABEL - 1))]))


def _progress(sight: Sight, width: int) -> Text:
    done, total = (sight.step.step, sight.step.steps) if sight.step else (0, sight.recipe.run.steps)
    times = [("elapsed", sight.elapsed), ("left", sight.left)]
    rest = Text.assemble("  version ", (f"{sight.step.policy_version if sight.step else 0}", "bold"), style=ROUTINE)
    for name, seconds in times:
        if seconds is not None:
            rest.append(f"  {minutes(seconds)}", "bold").append(f" {name}")
    text = Text.assemble((f"{done}/{total}", "bold"), " ")
    cells = max(0, min(PROGRESS, width - len(text) - len(rest)))
    full = round(cells * min(1.0, done / total))
    return text.append("━" * full, "cyan").append("─" * (cells - full), ROUTINE).append_text(rest)


def _reward(progress: Progress) -> Text:
    if not progress.steps:
        return Text("no step yet", ROUTINE)
    text = Text().append(spark([r.reward for r in progress.steps], SPARK), "green")
    text.append(f" {progress.steps[-1].reward:.2f}", "bold")
    first, last = _figure(progress.first().reward), _figure(progress.last().reward)
    text.append(f"  first {RECENT} ", ROUTINE).append(first)
    return text.append(f"  last {RECENT} ", ROUTINE).append(last, "bold")


def _evaluations(progress: Progress) -> Text:
    start, latest = progress.evaluation("start"), progress.evaluation()
    if latest is None:
        return Text("no evaluation yet", ROUTINE)
    text = Text()
    if start is not None:
        text.append("start ", ROUTINE).append_text(_evaluation(start))
    if latest is not start:
        text.append("   " if text else "").append(f"version {latest.policy_version} ", ROUTINE)
        text.append_text(_evaluation(latest))
    return text


def _evaluation(evaluation: Evaluation) -> Text:
    return Text.assemble((_figure(evaluation.pass_at_1), "bold"), (f" ({evaluation.samples} samples)", ROUTINE))


def _staleness(sight: Sight) -> Text:
    whole, step = sight.progress.whole, sight.step
    text = Text.assemble(("mean ", ROUTINE), (_figure(whole.staleness_mean), "bold"), ("   max ", ROUTINE))
    text.append(f"{whole.staleness_max}", "bold").append(f" of {sight.recipe.run.max_staleness} allowed", ROUTINE)
    return text.append("   last step ", ROUTINE).append(_figure(step.staleness_mean if step else None))


def _ages(sight: Sight) -> Text:
    """Part of the trained tokens by age, as upright bars; the last one holds all that is older."""
    ages = sight.progress.whole.ages
    total = max(1, sum(ages.values()))
    columns = min(max(sight.recipe.run.max_staleness, 0) + 1, MOST_AGES)
    parts = [ages.get(age, 0) / total for age in range(columns)]
    parts[-1] += sum(count for age, count in ages.items() if age >= columns) / total
    tallest = max([*parts, 1e-9])
    rows = []
    for row in reversed(range(AGE_ROWS)):
        eighths = [round(8 * AGE_ROWS * part / tallest) - 8 * row for part in parts]
        eighths = [max(e, 1) if part and row == 0 else e for e, part in zip(eighths, parts, strict=True)]
        rows.append("".join(f" {BARS[min(8, max(0, e))] * (AGE_CELLS - 2)} " for e in eighths))
    names = [f"{age}" for age in range(columns)]
    if sight.recipe.run.max_staleness >= columns:
        names[-1] += "+"
    shares = ["" if not part else "<1%" if part < 0.005 else f"{part:.0%}" for part in parts]
    text = Text().append("\n".join(rows) + "\n", "cyan")
    text.append("".join(share.center(AGE_CELLS) for share in shares) + "\n")
    return text.append("".join(name.center(AGE_CELLS) for name in names), ROUTINE)


def _sides(sight: Sight) -> list[tuple[str, RenderableType]]:
    """Both sides against each other: how fast each is, and what it does or waits for."""
    speeds = _speeds(sight) if sight.step else (None, None)
    states = (_generators(sight), _learner(sight)) if sight.going else (None, None)
    rows: list[tuple[str, RenderableType]] = []
    for label, speed, state in zip(("generators", "learner"), speeds, states, strict=True):
        about = [text for text in (speed, state) if text is not None]
        rows += [(label if i == 0 else "", text) for i, text in enumerate(about)]
    return rows


def _speeds(sight: Sight) -> tuple[Text, Text]:
    """What is published, as the generators or else the last steps say, and what is trained on in the last steps."""
    last = sight.progress.last()
    sampled, groups = sight.tokens_per_second, sight.groups_per_second
    if sampled is None or groups is None:
        sampled, groups = last.per_second(last.sampled), last.per_second(sum(last.groups.values()))
    trained, batch = last.per_second(last.trained), last.per_second(last.groups["trained"])
    top = max(sampled or 0.0, trained or 0.0, 1e-9)
    return _speed(sampled, groups, top, "magenta"), _speed(trained, batch, top, "blue")


def _speed(tokens: float | None, groups: float | None, top: float, style: str) -> Text:
    full = round(SPEED * (tokens or 0.0) / top)
    text = Text.assemble(("━" * full, style), " " * (SPEED - full), (f"{_figure(tokens, 0):>8}", "bold"))
    return text.append(" tok/s", ROUTINE).append(f"{_figure(groups):>9}").append(" groups/s", ROUTINE)


def _groups(progress: Progress) -> list[tuple[str, RenderableType]]:
    return [
        ("groups", Text("".join(f"{verdict:>{COUNT}}" for verdict in VERDICTS), ROUTINE)),
        (f"  last {RECENT}", _counts(progress.last())),
        ("  all", _counts(progress.whole)),
    ]


def _counts(stretch: Stretch) -> Text:
    text = Text("")
    for verdict, count in stretch.groups.items():
        style = {"stale": BAD, "failed": WRONG}.get(verdict, "default") if count else ROUTINE
        text.append(f"{count:>{COUNT}}", style)
    return text


def _learner(sight: Sight) -> Text:
    answer = sight.learner
    silent = _silence(answer, sight)
    if silent is not None or answer is None:
        return silent or Text()
    what = LEARNER_WAITS.get(answer.reason, f"waits: {answer.reason}")
    style = WRONG if not answer.healthy else BAD if answer.reason == "no live generator" else "default"
    text = Text(f"{what} {answer.detail}".strip(), style)
    return text.append(f" · {minutes(sight.now - answer.since)}", ROUTINE)


def _silence(answer: Answer | None, sight: Sight) -> Text | None:
    if answer is None:
        return Text("not up yet", ROUTINE)
    silent = sight.now - answer.at
    return Text(f"no answer for {minutes(silent)}", BAD) if silent > SILENT_SECONDS else None


def _generators(sight: Sight) -> Text:
    """All of them in one row: how many are up, how full their slots are, what they hold."""
    heard = [a for a in sight.generators if a and sight.now - a.at <= SILENT_SECONDS]
    if not heard:
        return Text("not up yet" if not any(sight.generators) else "no answer", ROUTINE)
    slots = sum(a.figure("generator_slots") for a in heard)
    busy = sum(a.figure("generator_in_flight_groups") for a in heard)
    versions = sorted({int(a.figure("generator_policy_version")) for a in heard})
    up = f"{len(heard)} of {len(sight.generators)} up" if len(sight.generators) > 1 else ""
    parts = [up, f"{busy:.0f} of {slots:.0f} slots busy" if slots else ""]
    if slots:
        parts.append(f"version {'–'.join(str(v) for v in versions[:1] + versions[1:][-1:])}")
    waiting = [a for a in heard if a.reason != "none"]
    if waiting:
        longest = min(waiting, key=lambda a: a.since)
        what = GENERATOR_WAITS.get(longest.reason, f"waits for a {longest.reason}")
        parts.append(f"{what} · {minutes(sight.now - longest.since)}")
    elif not slots:
        parts.append(GENERATOR_WAITS["engine"])
    else:
        parts.append(f"last group {minutes(sight.now - max(a.progressed for a in heard))} ago")
    return Text(" · ".join(part for part in parts if part), "default" if all(a.healthy for a in heard) else WRONG)
