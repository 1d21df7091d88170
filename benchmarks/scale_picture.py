"""Idle time over the bound, depth by depth, with its floors, and the mean staleness beside it; PNG.

Invariant: what is drawn is what was measured, every run of it. Refuses to know how.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, FAINT = "#222222", "#dddddd"
COLOURS = {0: "#d55e00", 1: "#e69f00", 2: "#009e73", 4: "#0072b2", None: INK}  # told apart by colour-blind readers
MARKERS = {0: "X", 1: "v", 2: "o", 4: "D", None: "s"}

Row = dict[str, Any]


def picture(document: dict[str, Any]) -> bytes:
    """Three panels, 1800 × 768 pixels."""
    figure = Figure(figsize=(15, 6.4), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(
        "How long does the learner wait, and can it wait less? Sides balanced, in virtual time",
        color=INK,
        fontsize=15,
        fontweight="bold",
    )
    idle, measured, staleness = figure.subplots(1, 3, width_ratios=[1.4, 1, 1])
    long, real = ([row for row in document["idle"] if row["job"]["times"] == t] for t in ("log-normal", "GSM8K"))
    _curves(idle, long, "idle", 100)
    _curves(measured, real, "idle", 100)
    _curves(staleness, long, "staleness", 1)
    _dress(idle, "learner idle, %; log-normal times, p99/median = 10")
    _dress(measured, "learner idle, %; lengths of GSM8K's answers")
    _dress(staleness, "mean staleness, versions; log-normal times")
    measured.plot([], [], color=INK, alpha=0.25, linewidth=7, label="its floor")
    measured.plot([], [], color=INK, linestyle=":", linewidth=1.4, label="bound of any design")
    measured.legend(loc="center right", bbox_to_anchor=(1.0, 0.72), frameon=False, fontsize=11)  # where there is room
    figure.supxlabel("max_staleness, policy versions", color=INK, fontsize=12)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _curves(axes: Axes, rows: Sequence[Row], name: str, scale: float) -> None:
    for depth in COLOURS:
        of = [row for row in rows if _depth(row) == depth]
        bounds = [row["job"]["bound"] for row in of]
        if name == "idle":
            floor = [scale * row["promised"] for row in of]
            axes.plot(bounds, floor, color=COLOURS[depth], alpha=0.25, linewidth=7, solid_capstyle="round")
            least = [scale * row["any"] for row in of]
            axes.plot(bounds, least, color=COLOURS[depth], linestyle=":", linewidth=1.4)
        label = "strict, depth = bound" if depth is None else f"ready, depth {depth}"
        values = [scale * row[name] for row in of]
        line = "--" if depth is None else "-"
        style: dict[str, Any] = {"linestyle": line, "marker": MARKERS[depth], "markersize": 6}
        axes.plot(bounds, values, color=COLOURS[depth], linewidth=1.4, label=label, **style)


def _depth(row: Row) -> int | None:
    return None if row["job"]["order"] == "strict" else int(row["job"]["depth"])


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xticks([0, 1, 2, 4, 6, 8, 12, 16])
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
