"""The picture of a run: reward and held-out pass@1 over its steps, and below them how stale it trained.

Invariant: the reward shown is that of all groups consumed, never of the trained ones alone. Refuses to know folders.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from monitoring.progress import RECENT, Evaluation, Progress, Stretch
from monitoring.recipe import ViewRecipe

INK, FAINT, REWARD, EVAL, STALENESS = "#222222", "#dddddd", "#1a7f5a", "#c2410c", "#3b5b92"


def png(progress: Progress, recipe: ViewRecipe) -> bytes:
    """Draw it, 1600 × 1120 pixels."""
    figure = Figure(figsize=(10, 7), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    figure.suptitle(f"{recipe.run.name}: {recipe.model_name}", color=INK, fontsize=15, fontweight="bold")
    _reward(above, progress)
    _staleness(below, progress, recipe.run.max_staleness)
    return painted(figure)


def painted(figure: Figure) -> bytes:
    """A figure as PNG, drawn once: `savefig` would draw everything before, only to lay it out."""
    canvas: Any = FigureCanvasAgg(figure)
    out = io.BytesIO()
    canvas.print_png(out)
    return out.getvalue()


def step_of(evaluation: Evaluation, progress: Progress) -> int:
    """The step that made the version which was evaluated; version 0 lies before the first."""
    made = (r.step for r in progress.steps if r.policy_version >= evaluation.policy_version)
    return next(made, progress.steps[-1].step) if evaluation.policy_version else 0


def bare(axes: Axes) -> None:
    """No more lines than it takes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)


def _reward(axes: Axes, progress: Progress) -> None:
    steps = [r.step for r in progress.steps]
    smooth = [Stretch(progress.steps[max(0, i + 1 - RECENT) : i + 1]).reward or 0.0 for i in range(len(steps))]
    axes.plot(steps, [r.reward for r in progress.steps], ".", color=REWARD, alpha=0.45, label="reward of a step")
    axes.plot(steps, smooth, color=REWARD, linewidth=2.2, label=f"mean of the last {RECENT} steps")
    _evaluations(axes, progress)
    rewards = [r.reward for r in progress.steps]
    axes.set_ylim(min(0.0, *rewards) - 0.02, max(1.0, *rewards) + 0.04)
    axes.set_ylabel("mean reward, pass@1", color=INK)
    axes.set_title("reward over all groups consumed, degenerate ones included", loc="left", color=INK, fontsize=10)
    axes.legend(loc="lower right", frameon=False)
    bare(axes)


def _evaluations(axes: Axes, progress: Progress) -> None:
    points = [(step_of(r.eval, progress), r.eval) for r in progress.evaluations if r.eval.pass_at_1 is not None]
    if not points:
        return
    values = [evaluation.pass_at_1 or 0.0 for _, evaluation in points]
    axes.plot([x for x, _ in points], values, "D", color=EVAL, markersize=8, label="held-out pass@1", clip_on=False)
    rewards = {r.step: r.reward for r in progress.steps}
    for (x, _), value in zip(points, values, strict=True):
        away = 9 if value >= rewards.get(x, 0.0) else -19  # from the curve
        where = {"xytext": (0, away), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{value:.2f}", (x, value), color=EVAL, fontweight="bold", **where)  # type: ignore[arg-type]


def _staleness(axes: Axes, progress: Progress, bound: int) -> None:
    steps = [r.step for r in progress.steps]
    oldest = [r.staleness_max for r in progress.steps]
    axes.fill_between(steps, 0, oldest, color=STALENESS, alpha=0.15, linewidth=0, label="oldest token", step="mid")
    axes.plot(steps, [r.staleness_mean for r in progress.steps], color=STALENESS, linewidth=1.8, label="mean")
    axes.set_ylim(0, max(1, *oldest) * 1.45)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    margin = 0.015 * max(steps)
    axes.set_xlim(-margin, max(steps) + margin)
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("staleness, versions", color=INK)
    axes.set_title(f"staleness of the trained tokens, {bound} allowed", loc="left", color=INK, fontsize=10)
    axes.legend(loc="upper right", frameon=False, ncols=2)
    bare(axes)
