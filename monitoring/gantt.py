"""The timeline as a picture: a row for the learner, one for each lane of each generator, seconds across.

Invariant: a colour means one thing in all rows; whatever a process is called, its name stays text. Refuses to know
where times come from.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from monitoring.dossier import Dossier
from monitoring.letters import printable
from monitoring.plot import FAINT, INK
from monitoring.timeline import PHASES, SERVING, Row, Timeline

WAIT = "#d6d3d1"
COLOURS = {
    "wait": WAIT,
    "claim": "#7c8db5",
    "pack": "#93c5fd",
    "forward_backward": "#2563eb",
    "optimizer": "#1e3a8a",
    "figures": "#0891b2",
    "publish": "#f97316",
    "checkpoint": "#92400e",
    "evaluate": "#db2777",
    "publication": "#fbbf24",
    "wait for version": "#a8a29e",
    "sample": "#8e44ad",
    "verify": "#0d9488",
    "hand in": "#84cc16",
}
SAID = {"wait": "wait for groups", "forward_backward": "forward, backward", "publish": "wait for publication"}
NAME = 22  # characters of a process' name
LEAST = 6  # rows that have room
MOST_NUMBERS = 14  # of steps, above the picture


def height(runs: Sequence[Dossier]) -> float:
    """Inches that the tallest of them takes."""
    return max((2.3 + 0.24 * max(LEAST, len(Timeline.of(run).rows)) for run in runs), default=3.5)


def gantt(axes: Axes, run: Dossier) -> None:
    """Who waited for whom: what each process did when, over the latest steps."""
    line = Timeline.of(run)
    for y, row in enumerate(line.rows):
        _draw(axes, y, row, line.begin)
    for _, at in line.steps:
        axes.axvline(at - line.begin, color=INK, linewidth=0.5, alpha=0.35)
    _numbers(axes, line)
    _names(axes, line)
    _legend(axes, line)
    axes.set_xlim(0.0, max(line.end - line.begin, 1e-3))
    axes.set_ylim(max(len(line.rows), LEAST) - 0.4, -0.6)
    since = datetime.fromtimestamp(line.begin).astimezone().strftime("%H:%M:%S") if line.rows else "the beginning"
    axes.set_xlabel(
        "\n".join([f"seconds since {since}", *textwrap.wrap(printable(line.without), 80, max_lines=3)]),
        parse_math=False,
    )
    axes.set_title(
        "Who waited for whom?" + (f" The latest steps, {len(line.steps)} of them" if len(line.steps) > 1 else ""),
        pad=18,
    )


def _draw(axes: Axes, y: int, row: Row, begin: float) -> None:
    """One collection a colour: a row may have hundreds of spans."""
    for name in dict.fromkeys(span.name for span in row.spans):
        corners = [
            [(x, y - 0.42), (x, y + 0.42), (x + span.seconds, y + 0.42), (x + span.seconds, y - 0.42)]
            for span in row.spans
            if span.name == name
            for x in [span.begin - begin]
        ]
        axes.add_collection(PolyCollection(corners, facecolors=COLOURS[name], linewidths=0), autolim=False)


def _numbers(axes: Axes, line: Timeline) -> None:
    every = -(-len(line.steps) // MOST_NUMBERS)
    for n, (step, at) in enumerate(line.steps):
        if n % every == 0 or n == len(line.steps) - 1:
            where = {"ha": "center", "va": "bottom", "fontsize": 7, "color": INK}
            axes.text(at - line.begin, 1.01, str(step), transform=axes.get_xaxis_transform(), **where)  # type: ignore[arg-type]


def _names(axes: Axes, line: Timeline) -> None:
    """A process is named at its first row, its other lanes are numbered."""
    labels: list[str] = []
    for process, rows in groupby(line.rows, key=lambda row: row.process):
        lanes = [str(row.lane + 1) for row in rows]
        name = printable(process)
        name = name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[1 - NAME // 2 :]}"
        if labels:
            axes.axhline(len(labels) - 0.5, color=FAINT, linewidth=1.0)
        labels += [name] if len(lanes) == 1 else [f"{name}  {lanes[0]}", *lanes[1:]]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def _legend(axes: Axes, line: Timeline) -> None:
    drawn = {span.name for row in line.rows for span in row.spans}
    patches = [Patch(color=COLOURS[name], label=SAID.get(name, name)) for name in (*PHASES, *SERVING) if name in drawn]
    if patches:
        axes.legend(handles=patches, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
