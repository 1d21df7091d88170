"""`make exhibit`: what happens to the true reward when something else is paid for.

Two policies begin alike and are trained alike, on the toy of `benchmarks.toy` with the learner's own step. One is paid
by the verifier: the right answer or nothing. The other by a proxy that seems reasonable: credit for every digit in its
place, and for thoroughness, which it measures in tokens. Both rewards of both policies are exact expectations over all
completions there are. Invariant: all seeds are in the picture. Refuses to know language models.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.lagged import GROUPS, SIZE, Run, policy
from benchmarks.toy import BASE, END, LONGEST, Judge, Problems, Toy, addition, right, sampled
from consumer.trainer import Trainer

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "exhibit.png"
RATE, STEPS, EVERY, SEEDS = 4e-3, 300, 10, tuple(range(1, 9))
THOROUGHNESS = 0.1  # of the proxy; the rest is for digits in their places
INK, COLOURS = "#222222", {"true": "#009e73", "proxy": "#d55e00"}


def proxy(tokens: Tensor, which: Tensor, problems: Problems) -> Tensor:
    """What looks like quality: the share of the answer's digits in their places, and length; from 0 to 1."""
    asked = problems.counted[which] & (problems.answers[which] != END)
    placed = ((tokens == problems.answers[which]) & asked).sum(1).double() / asked.sum(1)
    ended = (tokens == END).long().argmax(1)
    length = torch.where((tokens == END).any(1), ended, LONGEST).double() / LONGEST
    return (1 - THOROUGHNESS) * placed + THOROUGHNESS * length


JUDGES: dict[str, Judge] = {"true": right, "proxy": proxy}


@dataclass(frozen=True)
class Curve:
    """One policy: paid for by `paid`; its expected rewards (K,) and mean length (K,) every EVERY steps."""

    paid: str
    seed: int
    true: list[float]
    proxy: list[float]
    tokens: list[float]


def trained(paid: str, seed: int, steps: int = STEPS, imitation: int = 500) -> Curve:
    """A whole run, each batch sampled by the newest policy."""
    run = Run("headrace", 0, seed, RATE, steps, imitation=imitation)
    trainer, problems = Trainer(policy(run), run.recipe), addition()
    toy: Toy = trainer.model.module
    chance, out = torch.Generator().manual_seed(seed), Curve(paid, seed, [], [], [])
    for version in range(steps + 1):
        if version % EVERY == 0:
            _look(toy, problems, out)
        if version < steps:
            trainer.train(sampled(toy, problems, version, GROUPS, SIZE, chance, JUDGES[paid]), version)
    return out


def _look(toy: Toy, problems: Problems, out: Curve) -> None:
    tokens, lengths, counted = completions()
    count, each = len(tokens), len(problems.prompts)
    which = torch.arange(each).repeat_interleave(count)
    said = tokens.repeat(each, 1)
    with torch.no_grad():
        spread = (toy.logprobs(problems.prompts[which], said).double() * counted.repeat(each, 1)).sum(1).exp()
    for name, judge in JUDGES.items():
        getattr(out, name).append(float((spread * judge(said, which, problems)).sum()) / each)
    out.tokens.append(float((spread * lengths.repeat(each)).sum()) / each)


@lru_cache(maxsize=1)
def completions() -> tuple[Tensor, Tensor, Tensor]:
    """All there are: tokens (S, LONGEST), filled up with END; lengths (S,) in tokens; which count, (S, LONGEST)."""
    rows = [(*digits, END) for n in range(LONGEST) for digits in product(range(BASE), repeat=n)]
    rows += list(product(range(BASE), repeat=LONGEST))
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.tensor([[*row, *[END] * (LONGEST - len(row))] for row in rows])
    return tokens, lengths, torch.arange(LONGEST)[None] < lengths[:, None]


def picture(curves: Sequence[Curve]) -> bytes:
    """Proxy and true reward of either policy, PNG."""
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("What is paid for is what grows", color=INK, fontsize=15, fontweight="bold")
    titles = {"proxy": "paid by a proxy: digits in place, and length", "true": "paid by the verifier"}
    for axes, (paid, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        mine = [curve for curve in curves if curve.paid == paid]
        for name in ("proxy", "true"):
            _line(axes, [getattr(curve, name) for curve in mine], name)
        axes.set_title(title, loc="left", color=INK, fontsize=12)
        axes.set_ylim(0, 1)
        axes.set_xlabel("steps", color=INK)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center right", frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _line(axes: Axes, values: Sequence[Sequence[float]], name: str) -> None:
    places = [EVERY * i for i in range(len(values[0]))]
    means = [fmean(at) for at in zip(*values, strict=True)]
    errors = [stdev(at) / len(at) ** 0.5 if len(at) > 1 else 0.0 for at in zip(*values, strict=True)]
    axes.plot(places, means, color=COLOURS[name], linewidth=2.4, label=f"{name} reward")
    band = ([m - e for m, e in zip(means, errors, strict=True)], [m + e for m, e in zip(means, errors, strict=True)])
    axes.fill_between(places, *band, color=COLOURS[name], alpha=0.2, linewidth=0)


def table(curves: Sequence[Curve]) -> str:
    """What it came to, Markdown."""
    rows = ["| paid by | | start | best | end |", "|---|---|---|---|---|"]
    for paid in JUDGES:
        mine = [curve for curve in curves if curve.paid == paid]
        for name in (*JUDGES, "tokens"):
            found = [getattr(curve, name) for curve in mine]
            ends = (fmean(c[0] for c in found), fmean(max(c) for c in found), fmean(c[-1] for c in found))
            rows.append(f"| {paid} | {name} | " + " | ".join(f"{value:.2f}" for value in ends) + " |")
    return "\n".join(rows)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make exhibit", description="a gameable reward against a verifiable one")
    parser.add_argument("--quick", action="store_true", help="see in seconds that it works; nothing is written")
    quick = parser.parse_args().quick
    jobs = [(paid, seed) for seed in (SEEDS[:1] if quick else SEEDS) for paid in JUDGES]
    torch.set_num_threads(1)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(trained, *job, *((20, 20) if quick else ())) for job in jobs]
        curves = [future.result() for future in futures]
    print(table(curves))
    if not quick:
        PICTURE.write_bytes(picture(curves))
        (HERE / "exhibit.json").write_text(json.dumps([asdict(curve) for curve in curves]))
        print(f"\n{PICTURE.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
