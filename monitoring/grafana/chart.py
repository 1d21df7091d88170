"""What a dashboard is made of: charts in rows, said once, in words of our own.

Invariant: a chart has a unit and says how to read it and what to do; its number is Grafana's panel id and never
changes or serves another chart, since links and people name it. Refuses to know Grafana's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["lines", "stack", "figure", "states", "heat"]

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
BOUND = "allowed"  # a legend that begins so is a limit of the recipe: drawn dashed and red
TOKENS_PER_SECOND, VERSIONS, SHARE, SECONDS, COUNT = "si:tok/s", "suffix:versions", "percentunit", "s", "short"


@dataclass(frozen=True)
class Chart:
    """One panel. `queries`: legend → PromQL without the selectors of job and run; a rate is taken over `$window`.

    `limits` are (from this value upwards, colour), above a base of `base`; of a figure they colour it, of lines they
    are drawn. `words` stand for values of a figure.
    """

    number: int
    title: str
    how: str
    unit: str
    queries: Mapping[str, str]
    kind: Kind = "lines"
    base: str = GREEN
    limits: Sequence[tuple[float, str]] = ()
    low: float | None = 0.0
    high: float | None = None
    decimals: int | None = None
    words: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Charts side by side, as many as `across`, under a heading; without a title there is none."""

    number: int
    title: str
    charts: Sequence[Chart]
    across: int = 3
    height: int = 7  # in Grafana's cells of 38 pixels


@dataclass(frozen=True)
class Board:
    """One dashboard. `by_instance`: generators can be looked at one by one."""

    name: str  # of its file; `headrace-<name>` is its uid
    title: str
    about: str
    rows: Sequence[Row]
    by_instance: bool = False

    @property
    def uid(self) -> str:
        """What links go by."""
        return f"headrace-{self.name}"


def share(counter: str, label: str) -> str:
    """Of a counter's growth, the part that each value of a label has."""
    return f"sum by ({label}) (rate({counter}[$window])) / ignoring({label}) group_left sum(rate({counter}[$window]))"


def quantile(q: float, histogram: str) -> str:
    """Of what a histogram observed in the window, all its processes together."""
    return f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket[$window])))"


def mean(histogram: str) -> str:
    """Of what a histogram observed in the window, all its processes together."""
    return f"sum(rate({histogram}_sum[$window])) / sum(rate({histogram}_count[$window]))"


def buckets(histogram: str) -> str:
    """What a heat map shows: how much fell into each bucket."""
    return f"sum by (le) (increase({histogram}_bucket[$window]))"


def setting(name: str) -> str:
    """A number of the recipe."""
    return f'headrace_learner_setting{{name="{name}"}}'


def unsettled() -> str:
    """Train tickets that may be without a verdict: in play, and trained on since the last checkpoint."""
    awaiting = "sum(headrace_learner_step - headrace_learner_checkpoint_step)"
    return f"sum({setting('capacity')}) + sum({setting('groups_per_step')}) * {awaiting}"


def under_way() -> str:
    """Shares of the generators' phases: of what is under way, as a long phase is counted only once it is over."""
    counted = "avg_over_time(headrace_generator_in_phase[$window])"
    return f"sum by (phase) ({counted}) / ignoring (phase) group_left () sum({counted})"
