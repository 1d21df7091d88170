"""The charts of a run, one a question: is it learning, how stale, how fast, who waits for whom, how long.

Invariant: a chart of nothing says so and is drawn all the same; an axis has its unit. Refuses to know pages and files.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monitoring.dossier import Dossier
from monitoring.gantt import gantt, height
from monitoring.plot import EVAL, INK, REWARD, STALENESS, bare, painted, step_of
from monitoring.trail import Life

GENERATOR, LEARNER, WAIT, OTHER, BAD = "#8e44ad", "#2563eb", "#d6d3d1", "#a3a3a3", "#c0392b"
VERDICTS = {"trained": REWARD, "degenerate": OTHER, "stale": "#d97706", "failed": BAD}
FEW = 30  # steps, whose points show
LATEST = 60  # groups in the chart of who did what when
Chart = Callable[[Axes, Dossier], None]


def reward(axes: Axes, run: Dossier) -> None:
    """Reward of all groups, held-out pass@1 with its standard error."""
    steps = run.progress.steps
    axes.plot(
        [r.step for r in steps], [r.reward for r in steps], color=REWARD, marker=_point(run), label="reward, all groups"
    )
    points = [r.eval for r in run.progress.evaluations if r.eval.pass_at_1 is not None] if steps else []
    if points:
        x, y = [step_of(e, run.progress) for e in points], [e.pass_at_1 or 0.0 for e in points]
        errors = [e.pass_at_1_error or 0.0 for e in points]
        axes.errorbar(x, y, yerr=errors, fmt="D", color=EVAL, capsize=3, label="held-out pass@1 ± 1 s.e.")
    low, high = axes.get_ylim()
    axes.legend(frameon=False)
    limits = (min(0.0, low), max(1.05, high))  # the same for most runs, which stand side by side
    axes.set(title="Is it learning?", xlabel="optimizer step", ylabel="mean reward, pass@1", ylim=limits)


def staleness(axes: Axes, run: Dossier) -> None:
    """Of the tokens trained on, over the steps."""
    steps = run.progress.steps
    x, look = [r.step for r in steps], {"color": STALENESS, "marker": _point(run)}
    axes.plot(x, [r.staleness_max for r in steps], alpha=0.4, label="oldest", **look)  # type: ignore[arg-type]
    axes.plot(x, [r.staleness_mean for r in steps], label="mean", **look)  # type: ignore[arg-type]
    axes.axhline(run.recipe.run.max_staleness, color=BAD, linestyle=":", label="allowed")
    _legend_above(axes, 3)
    axes.set(title="How stale?", xlabel="optimizer step", ylabel="versions")


def ages(axes: Axes, run: Dossier) -> None:
    """All tokens trained on, by staleness."""
    counts = run.progress.whole.ages
    total = sum(counts.values()) or 1
    axes.bar([str(age) for age in counts], [100 * n / total for n in counts.values()], color=STALENESS)
    axes.set(title="Tokens by staleness", xlabel="versions", ylabel="% of trained tokens")


def throughput(axes: Axes, run: Dossier) -> None:
    """Tokens a second of both sides, step by step; the first step's time includes the start of the engines."""
    steps = run.progress.under_way.records
    for name, colour, tokens in (
        ("sampled", GENERATOR, [r.completion_tokens for r in steps]),
        ("trained", LEARNER, [r.tokens for r in steps]),
    ):
        rates = [count / max(r.seconds, 1e-9) for count, r in zip(tokens, steps, strict=True)]
        axes.plot([r.step for r in steps], rates, color=colour, marker=_point(run), label=name)
    axes.legend(frameon=False)
    axes.set(title="How fast?", xlabel="optimizer step", ylabel="completion tokens/s", ylim=(0, None))


def health(axes: Axes, run: Dossier) -> None:
    """Effective sample size and, on the right, entropy."""
    steps = run.progress.steps
    right = axes.twinx()
    for side, name, colour in ((axes, "ess", LEARNER), (right, "entropy", GENERATOR)):
        known = [(r.step, value) for r in steps if (value := getattr(r, name)) is not None]
        side.plot([x for x, _ in known], [y for _, y in known], color=colour, marker=_point(run))
        side.tick_params(axis="y", colors=colour)
    right.set_ylabel("entropy, nats", color=GENERATOR)
    axes.set(title="How far off the policy?", xlabel="optimizer step", ylim=(0, 1.05))
    axes.set_ylabel("effective sample size, fraction", color=LEARNER)


def verdicts(axes: Axes, run: Dossier) -> None:
    """What became of groups, step by step."""
    steps, below = run.progress.steps, [0.0] * len(run.progress.steps)
    for name, colour in VERDICTS.items():
        counts = [float(r.groups.get(name, 0)) for r in steps]
        axes.bar([r.step for r in steps], counts, bottom=below, color=colour, width=1.0, label=name)
        below = [a + b for a, b in zip(below, counts, strict=True)]
    _legend_above(axes)
    axes.set(title="What became of groups?", xlabel="optimizer step", ylabel="groups")


def learner_time(axes: Axes, run: Dossier) -> None:
    """Where the learner's time went, step by step."""
    steps, below = run.progress.under_way.records, [0.0] * len(run.progress.under_way.records)
    parts = [
        ("waits for groups", WAIT, [r.wait_seconds for r in steps]),
        ("trains", LEARNER, [r.train_seconds or 0.0 for r in steps]),
        ("waits for a publication", "#f97316", [r.loop_seconds.get("publish", 0.0) for r in steps]),
    ]
    rest = [max(0.0, r.seconds - sum(p[2][i] for p in parts)) for i, r in enumerate(steps)]
    for name, colour, seconds in [*parts, ("the rest", OTHER, rest)]:
        axes.bar([r.step for r in steps], seconds, bottom=below, color=colour, width=1.0, label=name)
        below = [a + b for a, b in zip(below, seconds, strict=True)]
    _legend_above(axes)
    axes.set(title="What did the learner wait for?", xlabel="optimizer step", ylabel="seconds a step")


def groups(axes: Axes, run: Dossier) -> None:
    """The latest groups from issue to verdict, in the order in which they were issued."""
    lives = [life for life in run.trail.lives if life.sampling is not None and life.used_at is not None][-LATEST:]
    lives.sort(key=lambda life: life.sampling.issued_at if life.sampling else 0.0)
    colours = (WAIT, "#f59e0b", GENERATOR, "#0d9488", OTHER, LEARNER)
    begin = min((life.sampling.issued_at for life in lives if life.sampling), default=0.0)
    for row, life in enumerate(lives):
        at = (life.sampling.issued_at if life.sampling else 0.0) - begin
        for (name, seconds), colour in zip(life.phases, colours, strict=True):
            axes.barh(row, seconds, left=at, height=1.0, color=colour, label=name if row == 0 else None)
            at += seconds
    _or_nothing(axes, lives, run)
    axes.invert_yaxis()
    axes.set(
        title="From issue to verdict" + (f": the latest {len(lives)} groups" if lives else ""),
        xlabel="seconds",
        ylabel="group",
    )


def lengths(axes: Axes, run: Dossier) -> None:
    """Completions by length, those that earned more than the mean of all against the others."""
    answers = list(chain.from_iterable(life.sampling.answers for life in run.trail.lives if life.sampling))
    rewards = [a.reward for a in answers if a.reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    better = [a.tokens for a in answers if a.reward is not None and a.reward > mean]
    others = [a.tokens for a in answers if a.reward is None or a.reward <= mean]
    if answers:
        names = [f"reward above {mean:.2f}", "the others"]
        axes.hist([better, others], bins=24, stacked=True, color=[REWARD, OTHER], label=names)
    _or_nothing(axes, run.trail.lives, run)
    axes.set(title="How long are completions?", xlabel="tokens", ylabel="completions in the audit log")


CHARTS: tuple[Chart, ...] = (
    *(reward, staleness, throughput, health, ages, verdicts, learner_time, groups, lengths),
)  # fmt: skip


def svg(chart: Chart, run: Dossier) -> bytes:
    """One chart; its texts stay texts, which whoever shows it has fonts for."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.__name__}):
        figure = Figure(figsize=(11.0, height([run])) if chart is gantt else (5.4, 3.4), layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        _drawn(figure.subplots(), chart, run)
        out = io.BytesIO()
        canvas.print_svg(out, metadata={"Date": None, "Creator": None})  # once, as `painted` does it
    return out.getvalue()


def png(runs: Sequence[Dossier]) -> bytes:
    """All charts of all runs, a column a run."""
    columns = max(len(runs), 1)
    across = 3 if columns == 1 else 1
    rows, tall = -(-len(CHARTS) // across), height(runs)
    figure = Figure(figsize=(16.2 if columns == 1 else 8.1 * columns, 3.4 * rows + tall), dpi=110, layout="constrained")
    parts = figure.add_gridspec(2, 1, height_ratios=[3.4 * rows, tall])
    above, below = figure.add_subfigure(parts[0, 0]), figure.add_subfigure(parts[1, 0])  # each with its own margins
    grid = above.subplots(rows, across * columns, squeeze=False)
    wide = below.subplots(1, columns, squeeze=False)
    for column, run in enumerate(runs):
        for n, chart in enumerate(CHARTS):
            _drawn(grid[n // across][column + n % across], chart, run)
        _drawn(wide[0][column], gantt, run)
    above.suptitle(
        " · ".join(f"{run.recipe.run.name}: {run.recipe.model_name}" for run in runs), color=INK, parse_math=False
    )
    return painted(figure)


def _drawn(axes: Axes, chart: Chart, run: Dossier) -> None:
    chart(axes, run)
    bare(axes)
    if axes.get_xlabel() == "optimizer step":
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, (low + high) / 2 - 1), max(high, (low + high) / 2 + 1))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if chart is gantt:
        axes.grid(visible=False)


def _point(run: Dossier) -> str:
    """One step makes no line."""
    return "." if len(run.progress.steps) <= FEW else ""


def _legend_above(axes: Axes, columns: int = 2) -> None:
    """Where there may be no corner free."""
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(frameon=False, ncols=columns, fontsize=8, loc="upper left")


def _or_nothing(axes: Axes, lives: Sequence[Life], run: Dossier) -> None:
    if lives:
        axes.legend(frameon=False, fontsize=8)
    else:
        why = textwrap.fill(run.without or "no group of it is in the audit log", 44, max_lines=4)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=INK, parse_math=False)
