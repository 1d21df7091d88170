"""What `benchmarks.autoscaling` found, as tables in Markdown and a picture.

Invariant: every run is in a table. Refuses to know how they came about.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, NEEDED, WAITED, MEAN, MOST = "#222222", "#dddddd", "#777777", "#d55e00", "#0072b2", "#56b4e9"
HOUR, MINUTES = 3600.0, 10.0  # of the means in the picture

Found = dict[str, Any]


def page(outcomes: Sequence[Found]) -> str:
    """All of it."""
    fixed = [found for found in outcomes if found["scenario"] == "fixed"]
    scaled = [found for found in outcomes if found["scenario"] != "fixed"]
    lines = [
        "# Scaling generators",
        "",
        "Written by `make bench-autoscaling`; what it means is in [docs/autoscaling.md](../docs/autoscaling.md).",
        "",
        "*settled*: fewest and most generators wanted while nothing has changed for long enough, of those needed",
        "(offered load in slots over 0.85 of the slots of a generator, rounded up). *turns*: changes of direction",
        "meanwhile. *reached*: minutes until as many were up as were needed at first. *idle*: the learner's time",
        "without a batch, from start to end and settled. *staleness*: of groups trained on, mean and maximum, and the",
        "bound. *hours*: generators times hours. *groups*: trained on and degenerate; in no run was one stale or lost.",
    ]
    for name in dict.fromkeys(found["scenario"] for found in scaled):
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", *_table([f for f in scaled if f["scenario"] == name])]
    lines += ["", "## Fixed numbers of generators", "", *_table(fixed), ""]
    return "\n".join(lines)


def _table(outcomes: Sequence[Found]) -> list[str]:
    rows = [
        "| signal | settled | turns | reached | idle | idle, settled | staleness | hours | groups |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in outcomes:
        spans = zip(found["lowest"], found["highest"], found["needed"], strict=True)
        settled = "; ".join(f"{a}–{b} of {n}" if a < b else f"{a} of {n}" for a, b, n in spans)
        reached = "–" if found["reached"] is None else f"{found['reached'] / 60:.0f}"
        mean, most, bound = found["staleness"]
        rows.append(
            f"| {found['signal']} | {settled} | {found['turns']} | {reached} | {found['idle']:.1%} | "
            f"{found['idle_settled']:.1%} | {mean:.1f}, {most} of {bound} | {found['generator_hours']:.1f} | "
            f"{sum(found['groups'].values()):,} |"
        )
    return rows


def picture(outcomes: Sequence[Found], name: str, settled: Sequence[tuple[float, float]]) -> bytes:
    """One scenario, a column a signal: generators, the learner's waiting, staleness over the hours; PNG."""
    found = [each for each in outcomes if each["scenario"] == name]
    figure = Figure(figsize=(16, 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"From one generator; {name}", color=INK, fontsize=15, fontweight="bold")
    rows = figure.subplots(3, len(found), sharex=True, sharey="row", squeeze=False)
    for column, each in zip(rows.T, found, strict=True):
        _column(column, each, settled)
    most = max(sight["replicas"] for each in found for sight in each["sights"])
    tops = (
        ("generators", 1.05 * most),
        ("learner idle, %", 100),
        ("staleness, versions", 1.3 * found[0]["staleness"][2]),
    )
    for axes, (label, top) in zip(rows[:, 0], tops, strict=True):
        axes.set_ylabel(label, color=INK)
        axes.set_ylim(0, top)
        axes.legend(loc="upper right", frameon=False, fontsize=9, ncols=3)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _column(column: Any, found: Found, settled: Sequence[tuple[float, float]]) -> None:
    sights = found["sights"]
    hours = np.array([sight["time"] for sight in sights]) / HOUR
    generators, idle, staleness = column
    generators.set_title(found["signal"].replace(": ", ":\n"), loc="left", color=INK, fontsize=11)
    generators.step(hours, [s["replicas"] for s in sights], where="post", color=INK, linewidth=1.4, label="wanted")
    generators.step(hours, [s["up"] for s in sights], where="post", color=MEAN, linewidth=0.9, label="up")
    generators.step(hours, [s["needed"] for s in sights], where="post", color=WAITED, linestyle="--", label="needed")
    waited, back = np.array([s["waited"] for s in sights]), round(MINUTES * 60 / (HOUR * (hours[1] - hours[0])))
    idle.plot(hours[back:], 100 * (waited[back:] - waited[:-back]) / (60 * MINUTES), color=WAITED, label="10 minutes")
    aged = [(at, s["staleness"]) for at, s in zip(hours, sights, strict=True) if s["staleness"]]
    times = [at for at, _ in aged]
    staleness.plot(times, [max(ages) for _, ages in aged], color=MOST, label="most")
    staleness.plot(times, [sum(ages) / len(ages) for _, ages in aged], color=MEAN, label="mean")
    staleness.axhline(found["staleness"][2], color=NEEDED, linestyle="--", label="bound")
    staleness.set_xlabel("hours", color=INK)
    for axes in column:
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for since, until in settled:
            axes.axvspan(since, until, color=FAINT, alpha=0.35, linewidth=0)
