"""A run as one screen, of 80 columns and 24 rows or more.

Invariant: no row is wider than the terminal or 200 columns, and all rows together fit the height, if that is 24 or
more, whatever the run has done. Refuses to know where figures come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitoring.alarms import Alarms, Alert
from monitoring.bars import AGE_CELLS, BAD, GOOD, LABEL, ROUTINE, WRONG, Block, ages, figure, spark
from monitoring.lines import minutes
from monitoring.progress import VERDICTS, Evaluation, History, StepRecord, Stretch
from monitoring.sides import each_generator, sides
from monitoring.sight import Sight

ROWS, WIDEST = 24, 200
NARROW = 80 - LABEL - 1  # cells beside the labels on 80 columns: the lengths of bars below are for these
SPARK, SHORT, PROGRESS, COUNT = 32, 8, 20, 12
AGE_ROWS, TALL_AGE_ROWS = 2, 4
TALL = 40  # rows of a terminal that has room for more
SEVERE = {"critical": WRONG}


def panel(sight: Sight, width: int, height: int = ROWS) -> RenderableType:
    """The whole screen; before the first step only what is known by then."""
    room = min(width, WIDEST) - LABEL - 1
    more, tall = max(0, room - NARROW), height >= TALL
    progress = sight.progress
    blocks = [_head(sight, room)]
    if progress.steps or progress.evaluations:
        blocks.append(Block([("reward", _reward(progress, room)), ("pass@1", _evaluations(progress))]))
    if progress.steps:
        blocks.append(Block([("staleness", _staleness(sight)), ("", _ages(sight, room, tall))]))
    if both := sides(sight, room, more // 2):
        blocks.append(Block(both))
    if progress.steps:
        blocks.append(Block(_groups(progress)))
    if tall:
        used = 1 + sum(block.height + 1 for block in blocks)
        blocks += _details(sight, height - 1 - used)
    rows = [row for block in blocks for row in (block.grid(room), Text(""))][:-1]
    return Group(_title(sight, room + LABEL), *rows)


def _title(sight: Sight, width: int) -> RenderableType:
    title = Table.grid(padding=(0, 1))
    title.width = width
    title.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    title.add_column(no_wrap=True, justify="right")
    name = Text.assemble((" headrace ", "bold reverse cyan"), "  ", (sight.name, "bold"))
    name.append(f"  {sight.about}", ROUTINE)
    status = Text(sight.status, f"bold {BAD if sight.status in ('not running', 'no signal') else GOOD}")
    if sight.going and sight.status_since is not None:
        status.append(f" · {minutes(sight.now - sight.status_since)}", ROUTINE)
    if sight.blind is not None:
        status = Text(f"no Prometheus for {minutes(sight.blind)}", f"bold {BAD}")
    title.add_row(name, status)
    return title


def _head(sight: Sight, room: int) -> Block:
    rows = [("step", _progress(sight, room))]
    if sight.going:
        rows.append(("alerts", _alerts(sight.alarms, room)))
    return Block(rows)


def _progress(sight: Sight, room: int) -> Text:
    done, total = (sight.step.step, sight.step.steps) if sight.step else (0, sight.steps)
    rest = Text.assemble("  version ", (f"{sight.step.policy_version if sight.step else 0}", "bold"), style=ROUTINE)
    for name, seconds in (("elapsed", sight.elapsed), ("left", sight.left)):
        if seconds is not None:
            rest.append(f"  {minutes(seconds)}", "bold").append(f" {name}")
    if not total:
        return Text.assemble((f"{done}", "bold"), " ").append_text(rest)
    text = Text.assemble((f"{done}/{total}", "bold"), " ")
    cells = max(0, min(PROGRESS + max(0, room - NARROW), room - len(text) - len(rest)))
    full = round(cells * min(1.0, done / total))
    return text.append("━" * full, "cyan").append("─" * (cells - full), ROUTINE).append_text(rest)


def _alerts(alarms: Alarms | None, room: int) -> Text:
    """As many as there is room for, and how many more there are."""
    if alarms is None:
        return Text("asking Prometheus", ROUTINE)
    if alarms.unknown:
        return Text(f"unknown: {alarms.unknown}", ROUTINE)
    if not alarms.alerts:
        return Text("none", GOOD)
    for shown in range(len(alarms.alerts), 1, -1):
        text = _listed(alarms, shown)
        if len(text) <= room:
            return text
    return _listed(alarms, 1)


def _listed(alarms: Alarms, shown: int) -> Text:
    text = Text(" · ", ROUTINE).join(_alert(alert, alarms.now) for alert in alarms.alerts[:shown])
    rest = len(alarms.alerts) - shown
    return text.append(f" +{rest} more", ROUTINE) if rest else text


def _alert(alert: Alert, now: float) -> Text:
    style = ROUTINE if alert.pending else SEVERE.get(alert.severity, BAD)
    text = Text(alert.name, style if alert.pending else f"bold {style}")
    if alert.where:
        text.append(f" {alert.where}", style)
    return text.append(f" {'pending ' if alert.pending else ''}{minutes(max(0.0, now - alert.since))}", style)


def _reward(progress: History, room: int) -> Text:
    if not progress.steps:
        return Text("no step yet", ROUTINE)
    cells = max(SHORT, SPARK + room - NARROW)
    text = Text().append(spark([r.reward for r in progress.steps], cells), "green")
    text.append(f" {progress.steps[-1].reward:.2f}", "bold")
    first, last = progress.first(), progress.last()
    text.append(f"  first {first.steps} ", ROUTINE).append(_mean_reward(first))
    return text.append(f"  last {last.steps} ", ROUTINE).append(_mean_reward(last), "bold")


def _mean_reward(stretch: Stretch) -> str:
    """With a mark where not every step was seen."""
    return f"{'' if stretch.complete else '~'}{figure(stretch.reward)}"


def _evaluations(progress: History) -> Text:
    start, latest = progress.evaluation("start"), progress.evaluation()
    if latest is None:
        return Text("no evaluation yet", ROUTINE)
    if start is None and (first := progress.evaluation("first")) is not latest:
        start = first  # that was seen
    text = Text()
    if start is not None:
        text.append(f"{start.label} ", ROUTINE).append_text(_evaluation(start))
    if latest is not start:
        which = f"version {latest.policy_version}" if latest.samples else "latest"
        text.append("   " if text else "").append(f"{which} ", ROUTINE).append_text(_evaluation(latest))
    return text


def _evaluation(evaluation: Evaluation) -> Text:
    of = f" ({evaluation.samples} samples)" if evaluation.samples else ""
    return Text.assemble((figure(evaluation.pass_at_1), "bold"), (of, ROUTINE))


def _staleness(sight: Sight) -> Text:
    whole, step = sight.progress.whole, sight.step
    text = Text.assemble(("mean ", ROUTINE), (figure(whole.staleness_mean), "bold"), ("   max ", ROUTINE))
    text.append(f"{whole.staleness_max}", "bold")
    if sight.max_staleness is not None:
        text.append(f" of {sight.max_staleness} allowed", ROUTINE)
    return text.append("   last step ", ROUTINE).append(figure(step.staleness_mean if step else None))


def _ages(sight: Sight, room: int, tall: bool) -> Text:
    whole = sight.progress.whole
    allowed = sight.max_staleness if sight.max_staleness is not None else whole.staleness_max or 0
    return ages(whole.ages, allowed, max(1, (room - 5) // AGE_CELLS), TALL_AGE_ROWS if tall else AGE_ROWS)


def _groups(progress: History) -> Sequence[tuple[str, Text]]:
    last = progress.last()
    return [
        ("groups", Text("".join(f"{verdict:>{COUNT}}" for verdict in VERDICTS), ROUTINE)),
        (f"  last {last.steps}", _counts(last.groups)),
        ("  all", _counts(progress.whole.groups)),
    ]


def _counts(groups: dict[str, int]) -> Text:
    text = Text("")
    for verdict in VERDICTS:
        count = groups.get(verdict, 0)
        style = {"stale": BAD, "failed": WRONG}.get(verdict, "default") if count else ROUTINE
        text.append(f"{count:>{COUNT}}", style)
    return text


def _details(sight: Sight, rows: int) -> Iterator[Block]:
    """What a tall terminal has room for: each generator, and the last steps one by one."""
    if sight.going and len(sight.generators) > 1 and rows > 2:
        block = Block(each_generator(sight, min(rows // 2, rows - 1)))
        rows -= block.height + 1
        yield block
    if sight.step and rows > 2:
        yield Block(_steps(sight.progress.steps[-(rows - 2) :]))


def _steps(records: Sequence[StepRecord]) -> list[tuple[str, Text]]:
    """The newest on top."""
    names = "".join(f"{name:>{COUNT}}" for name in (*VERDICTS, "reward", "staleness", "waited", "seconds"))
    rows = [("steps", Text(names, ROUTINE))]
    for record in reversed(records):
        several = f"{record.step - record.covers + 1}–" if record.covers > 1 else ""
        text = _counts(record.groups).append(f"{record.reward:>{COUNT}.2f}{record.staleness_mean:>{COUNT}.2f}")
        waited = record.wait_seconds / record.seconds if record.seconds > 0 else 0.0
        rows.append((f"  {several}{record.step}", text.append(f"{waited:>{COUNT}.0%}{record.seconds:>{COUNT}.1f}")))
    return rows
