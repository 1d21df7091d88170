"""How a panel of each kind looks on paper: lines, stacks, figures, bars of states, heat maps.

Invariant: what is drawn is the answer to the panel's queries, nothing smoothed, nothing left out without a word.
Refuses to know where the answers are from and where on the page the panel is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator

from monitoring.grafana.board import Panel
from monitoring.grafana.units import text
from monitoring.prometheus_api import Series

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
PALETTE = ("#3b6fb6", "#1a7f5a", "#c2410c", "#8a63b8", "#b8860b", "#2a9d8f", "#c23b72", "#6b7280", "#7a5230", "#9ab23b")
NAMED = {"green": "#1a7f5a", "yellow": "#c98a00", "red": "#c62828", "blue": "#3b6fb6"}
SMALL = 6.5  # points
MOST_BARS = 9
GAP, BRIDGED_SECONDS = 1.5, 60.0  # steps, and seconds, without a value that interrupt a line


@dataclass(frozen=True)
class Answer:
    """One series and how it is called; `dashed`: it is a limit."""

    label: str
    series: Series
    dashed: bool = False


@dataclass(frozen=True)
class Page:
    """What all panels share: seconds since the epoch, and the step of the queries."""

    begin: float
    end: float
    step: float

    def elapsed(self, seconds: float) -> str:
        """Since the beginning."""
        minutes, rest = divmod(round(seconds - self.begin), 60)
        return f"{minutes}:{rest:02d}"


def colours(answers: Sequence[Answer]) -> list[str]:
    """One for each series; a limit is red and takes none from the others."""
    found, used = [], 0
    for answer in answers:
        found.append(NAMED["red"] if answer.dashed else PALETTE[used % len(PALETTE)])
        used += not answer.dashed
    return found


def _points(series: Series, page: Page) -> tuple[np.ndarray, np.ndarray]:
    """Times and values (T,), with a hole where the series has one that Grafana would not bridge either."""
    times, values = np.array(series.times), np.array(series.values, dtype=float)
    values[~np.isfinite(values)] = math.nan  # no chart has room for infinity
    holes = np.flatnonzero(np.diff(times) > max(GAP * page.step, BRIDGED_SECONDS)) + 1
    return np.insert(times, holes, times[holes] - page.step / 2), np.insert(values, holes, math.nan)


def lines(axes: Axes, panel: Panel, answers: Sequence[Answer], page: Page) -> None:
    """One line a series; the panel's limits dashed."""
    for answer, colour in zip(answers, colours(answers), strict=True):
        times, values = _points(answer.series, page)
        style = (0, (5, 3)) if answer.dashed else "-"
        alone = np.isfinite(values).sum() == 1
        axes.plot(
            times, values, color=colour, linewidth=1.3, linestyle=style, marker="o" if alone else "", markersize=3
        )
    top = axes.dataLim.ymax
    for value, colour in panel.limits:
        if value is not None and value <= 1.5 * top:
            axes.axhline(value, color=NAMED[colour], linewidth=0.9, linestyle=(0, (5, 3)))
    _scale(axes, panel)


def stack(axes: Axes, panel: Panel, answers: Sequence[Answer], _: Page) -> None:
    """Series on top of each other; one without a value at a time counts nothing there."""
    times = np.array(sorted({t for a in answers for t in a.series.times}))
    below = np.zeros(len(times))
    for answer, colour in zip(answers, colours(answers), strict=True):
        at = np.searchsorted(times, answer.series.times)
        height = np.zeros(len(times))
        height[at] = np.nan_to_num(np.array(answer.series.values))
        axes.fill_between(times, below, below + height, color=colour, alpha=0.75, linewidth=0)
        below = below + height
    _scale(axes, panel)


def figure(axes: Axes, panel: Panel, answers: Sequence[Answer], page: Page) -> None:
    """The last value, large, in the colour of its limit, over a faint line of where it has been."""
    series = answers[0].series if answers else Series({}, [], [])
    value, colour = series.last, FAINT
    if value is not None:
        colour = next(NAMED[c] for limit, c in reversed(panel.limits) if limit is None or value >= limit)
    words = panel.words.get(f"{value:g}" if value is not None else "")
    if words is None and len(series.times) > 1:
        times, values = _points(series, page)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        axes.fill_between(times, low, values, color=colour, alpha=0.15, linewidth=0)
        axes.plot(times, values, color=colour, linewidth=0.8, alpha=0.6)
        axes.set_ylim(low, low + 2.6 * max(high - low, 1e-12))
    said = words or text(value, str(panel.defaults["unit"]), panel.defaults.get("decimals"))
    size = 17 if len(said) < 9 else 13
    axes.text(
        0.5, 0.62, said, transform=axes.transAxes, ha="center", va="center", color=colour, size=size, weight="bold"
    )
    axes.set_axis_off()


def states(axes: Axes, _: Panel, answers: Sequence[Answer], page: Page) -> None:
    """A row a series, a bar while it has a value; the longest first, the shortest left out with a word."""
    longest = sorted(answers, key=lambda answer: -len(answer.series.times))
    shown, rest = longest[:MOST_BARS], longest[MOST_BARS:]
    for row, answer in enumerate(shown):
        spans = [(t, page.step) for t in answer.series.times]
        axes.broken_barh(spans, (row - 0.38, 0.76), color=PALETTE[row % len(PALETTE)], alpha=0.85, linewidth=0)
    axes.set_yticks(range(len(shown)), [answer.label for answer in shown], size=SMALL)
    axes.set_ylim(max(len(shown), 3) - 0.5, -0.5)
    if rest:
        axes.set_xlabel(f"and {len(rest)} more", size=SMALL, color=FAINT)


def heat(axes: Axes, _: Panel, answers: Sequence[Answer], page: Page) -> None:
    """Time to the right, buckets upwards, darker for more. The counts of a histogram's buckets include smaller ones."""
    bounds = sorted((float(answer.series.labels["le"]), answer.series) for answer in answers)
    times = np.array(sorted({t for _le, series in bounds for t in series.times}))
    if not len(times):
        return
    table = np.zeros((len(bounds) + 1, len(times)))
    for row, (_le, series) in enumerate(bounds, start=1):
        finite = np.nan_to_num(np.array(series.values), posinf=0.0, neginf=0.0)
        table[row, np.searchsorted(times, series.times)] = finite
    counts = np.diff(table, axis=0).clip(min=0)
    used = np.flatnonzero(counts.sum(axis=1) > 0)
    low, high = (max(0, used[0] - 1), min(len(bounds), used[-1] + 2)) if len(used) else (0, len(bounds))
    counts, labels = counts[low:high], [f"{bound[0]:g}" for bound in bounds[low:high]]
    edges = [*times, times[-1] + page.step]
    axes.pcolormesh(edges, np.arange(len(labels) + 1), counts, cmap="Blues", norm=PowerNorm(0.5, 0, counts.max() or 1))
    every = max(1, len(labels) // 6)
    axes.set_yticks(np.arange(0, len(labels), every) + 0.5, labels[::every], size=SMALL)


DRAWN: Mapping[str, Callable[[Axes, Panel, Sequence[Answer], Page], None]] = {
    "timeseries": lines,
    "stacked": stack,
    "stat": figure,
    "state-timeline": states,
    "heatmap": heat,
}


def kind(panel: Panel) -> str:
    """Which of them a panel is."""
    stacked = panel.custom.get("stacking", {}).get("mode") == "normal"
    return "stacked" if stacked else panel.kind


def _scale(axes: Axes, panel: Panel) -> None:
    low, high = axes.dataLim.ymin, axes.dataLim.ymax
    if not math.isfinite(low) or not math.isfinite(high):  # nothing was drawn
        low, high = 0.0, 1.0
    low, high = panel.defaults.get("min", low), panel.defaults.get("max", high)
    high = high if high > low else low + 1.0
    axes.set_ylim(low - 0.02 * (high - low), high + 0.06 * (high - low))  # a line along an edge is seen
    unit, decimals = str(panel.defaults["unit"]), panel.defaults.get("decimals")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=decimals == 0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, _short(unit), decimals)))


def _short(unit: str) -> str:
    """What a tick has room for."""
    return {"suffix": "none", "si": "short"}.get(unit.partition(":")[0], unit)
