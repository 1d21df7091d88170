"""The figures of reward against staleness: tables in Markdown and a picture.

Invariant: every figure is a mean over all seeds, with its standard error where it is a reward; none is left out.
Refuses to know how they were found: it reads what `benchmarks.staleness` writes to `staleness.json`.
"""

from __future__ import annotations

import io
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, FAINT = "#222222", "#dddddd"
STYLES = {  # colours that colour-blind readers can tell apart, markers for everybody; what each does about staleness
    "pg": ("#d55e00", "X", "no correction"),
    "grpo": ("#0072b2", "s", "clips π/μ, KL"),
    "cispo": ("#56b4e9", "v", "weight π/μ ≤ 5"),
    "areal": ("#cc79a7", "D", "weight π/μ ≤ 5"),
    "m2po": ("#e69f00", "^", "masks harmful tokens"),
    "pipelinerl": ("#7a7a7a", "P", "weight π/μ ≤ 5"),
    "headrace": ("#009e73", "o", "weight π/μ ≤ 2"),
}
BOUNDS = ("clipped", "truncated", "masked")
LIMITS = """## What this does not show

It is a toy: 81 problems, answers of at most four tokens, a recurrent network of some 15,000 weights that one step can
move far. One task, one optimizer (AdamW), one batch size, one length of training. The learning rates are from a coarse
grid and were chosen without staleness, where the largest that works wins, and not chosen anew with it: a lower rate is
a remedy for staleness as well, and could change the order. The lag is constant and the same for all tokens: no
stragglers, no refresh within a sequence, no link between an answer's length and its age. Sampler and learner share
their numerics: no mismatch of engines. Samples are counted, not seconds: what asynchrony gains in throughput is not
here. Presets differ in more than their correction (`grpo` has a KL to where it started, `areal`, `cispo` and `m2po`
divide by the group's standard deviation), so a difference between two of them is not the worth of one setting. It is no
ranking of methods for language models.
"""


class Found:
    """The runs, by preset and staleness."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.presets: list[str] = list(document["sweep"]["presets"])
        self.staleness: list[int] = sorted(document["sweep"]["staleness"])

    def values(self, preset: str, staleness: int, name: str) -> list[float]:
        """One of each seed; `bounded` is what any bound took hold of."""
        runs = (r for r in self.document["runs"] if (r["preset"], r["staleness"]) == (preset, staleness))
        return [sum(r[b] for b in BOUNDS) if name == "bounded" else float(r[name]) for r in runs]

    def mean(self, preset: str, staleness: int, name: str) -> float:
        """Over the seeds."""
        return fmean(self.values(preset, staleness, name))

    def error(self, preset: str, staleness: int, name: str) -> float:
        """The standard error of that mean; 0 where there is one seed."""
        values = self.values(preset, staleness, name)
        return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0

    def kind(self, preset: str) -> str:
        """What bounds took hold of anything."""
        kinds = [b for b in BOUNDS if any(self.mean(preset, k, b) > 0 for k in self.staleness)]
        return ", ".join(kinds) or "none"


def markdown(document: dict[str, Any]) -> str:
    """Everything, as `staleness.md`."""
    found = Found(document)
    parts = [
        f"# Reward against staleness\n\n{_setting(document)}",
        f"## Reward of the final policy\n\n{_table(found, 'final')}",
        f"## Mean reward over training\n\n{_table(found, 'area')}",
        f"## Effective sample size\n\nOf the ratios π/μ of a batch's tokens, before any bound, as a fraction.\n\n"
        f"{_table(found, 'ess')}",
        "## Tokens clipped, truncated or masked, %\n\nA clip or a mask takes a token's gradient away, a truncation"
        f" holds its weight at a cap.\n\n{_bounded(found)}",
        f"## Learning rates\n\n{_rates(document)}",
        LIMITS,
    ]
    return "\n\n".join(parts)


def _setting(document: dict[str, Any]) -> str:
    sweep, runs = document["sweep"], document["runs"]
    skipped = sum(r["skipped"] for r in runs)
    return (
        f"Written by `make staleness`: {document['machine']}, {document['seconds'] / 60:.0f} minutes. Adding two\n"
        "numbers of two digits in base 3, one right answer each; a recurrent policy of some 15,000 weights that has\n"
        "imitated careless examples; the production learner step. Each batch (8 groups of 8, degenerate ones kept)\n"
        "was sampled by the policy of exactly so many versions ago (in the first steps: by the first there was).\n\n"
        f"{len(sweep['seeds'])} seeds, {sweep['steps']} steps, minibatches a step: {sweep['minibatches']}. Rewards are"
        " exact expectations, ± the standard error over seeds;\n"
        f"before training: {fmean(r['start'] for r in runs):.3f}. Updates thrown away as not finite: {skipped}."
    )


def _table(found: Found, name: str) -> str:
    def cell(preset: str, staleness: int) -> str:
        error = "" if name == "ess" else f" ± {found.error(preset, staleness, name):.3f}"
        return f"{found.mean(preset, staleness, name):.3f}{error}"

    head = ["preset", *(str(k) for k in found.staleness)]
    return _lines([head, *([f"`{p}`", *(cell(p, k) for k in found.staleness)] for p in found.presets)])


def _bounded(found: Found) -> str:
    head = ["preset", "which", *(str(k) for k in found.staleness)]
    rows = [
        [f"`{p}`", found.kind(p), *(f"{100 * found.mean(p, k, 'bounded'):.2f}" for k in found.staleness)]
        for p in found.presets
    ]
    return _lines([head, *rows])


def _rates(document: dict[str, Any]) -> str:
    """Mean final reward of each, the chosen one in bold."""
    rates = document["sweep"]["rates"]
    rows = [["trials of", *(f"{rate:g}" for rate in rates), "for"]]
    for preset in dict.fromkeys(trial["preset"] for trial in document["trials"]):
        trials = [t for t in document["trials"] if t["preset"] == preset]
        means = {rate: fmean(t["final"] for t in trials if t["learning_rate"] == rate) for rate in rates}
        best = max(means, key=lambda rate: means[rate])
        users = ", ".join(f"`{p}`" for p, of in document["tried_as"].items() if of == preset)
        rows.append([f"`{preset}`", *(f"**{m:.3f}**" if r == best else f"{m:.3f}" for r, m in means.items()), users])
    said = "Mean final reward at staleness 0 on {} seeds that are in no other figure; the best rate is the preset's."
    return f"{said.format(len(document['sweep']['rate_seeds']))}\n\n{_lines(rows)}"


def _lines(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def picture(document: dict[str, Any]) -> bytes:
    """Reward, effective sample size and bounded tokens over staleness, 1800 × 768 pixels."""
    found = Found(document)
    figure = Figure(figsize=(15, 6.4), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    figure.suptitle(
        "How old may samples be? Training a toy at a constant lag", color=INK, fontsize=15, fontweight="bold"
    )
    titles = ("reward of the final policy", "effective sample size, fraction", "tokens clipped, truncated or masked, %")
    for axes, name, title in zip(panels, ("final", "ess", "bounded"), titles, strict=True):
        for preset in found.presets:
            _curve(axes, found, preset, name)
        _dress(axes, found, title)
    seeds = len(document["sweep"]["seeds"])
    start = fmean(r["start"] for r in document["runs"])
    panels[0].axhline(start, color=INK, linestyle=":", linewidth=1)
    panels[0].annotate("before training", (0.01, start), (0, 4), ("axes fraction", "data"), "offset points", color=INK)
    panels[0].set_ylim(0, 1)
    panels[1].set_ylim(0, 1.03)
    panels[2].set_ylim(bottom=0)
    said = f"staleness of every batch, policy versions; mean and standard error of {seeds} seeds"
    figure.supxlabel(said, color=INK, fontsize=12)
    panels[1].legend(loc="lower left", frameon=False, fontsize=11)  # where there is room
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _curve(axes: Axes, found: Found, preset: str, name: str) -> None:
    colour, marker, does = STYLES.get(preset, (INK, ".", ""))
    scale = 100 if name == "bounded" else 1
    aside = 0.05 * (found.presets.index(preset) - (len(found.presets) - 1) / 2)  # or they would hide each other
    axes.errorbar(
        [place + aside for place in range(len(found.staleness))],
        [scale * found.mean(preset, k, name) for k in found.staleness],
        [scale * found.error(preset, k, name) for k in found.staleness],
        color=colour,
        marker=marker,
        markersize=7,
        linewidth=2.6 if preset == "headrace" else 1.6,
        linestyle="--" if preset == "pg" else "-",
        capsize=3,
        label=f"{preset}: {does}" if does else preset,
    )


def _dress(axes: Axes, found: Found, title: str) -> None:
    axes.set_xticks(range(len(found.staleness)), [str(k) for k in found.staleness])
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
