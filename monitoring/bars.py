"""Figures as bars of characters, and the few words that all parts of the screen share.

Invariant: what is drawn is as wide as the cells it was given, or narrower. Refuses to know what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

BARS = " ▁▂▃▄▅▆▇█"
LABEL, AGE_CELLS = 12, 5  # cells
ROUTINE, GOOD, BAD, WRONG = "dim", "green", "yellow", "red"


@dataclass(frozen=True)
class Block:
    """Labelled rows that belong together."""

    rows: Sequence[tuple[str, Text]]

    @property
    def height(self) -> int:
        """Rows on the screen."""
        return sum(content.plain.count("\n") + 1 for _, content in self.rows)

    def grid(self, room: int) -> RenderableType:
        """To be printed, with `room` cells beside the labels."""
        table = Table.grid(padding=0)
        table.add_column(width=LABEL, min_width=LABEL)
        table.add_column(width=room, overflow="ellipsis", no_wrap=True)
        for label, content in self.rows:
            table.add_row(f" {label}", content)
        return table


def spark(values: Sequence[float], cells: int) -> str:
    """Values as bars on the scale 0 … 1, wider if they are; more values than cells are averaged."""
    low, high = min([0.0, *values]), max([1.0, *values])
    cells = min(cells, len(values))
    edges = [round(i * len(values) / cells) for i in range(cells + 1)] if cells else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(BARS[1 + min(7, int(8 * (mean - low) / (high - low)))] for mean in means)


def upright(parts: Sequence[float], rows: int) -> str:
    """Parts as upright bars side by side, the tallest `rows` high; nothing that is there is too small to be seen."""
    tallest = max([*parts, 1e-9])
    lines = []
    for row in reversed(range(rows)):
        eighths = [round(8 * rows * part / tallest) - 8 * row for part in parts]
        eighths = [max(e, 1) if part and row == 0 else e for e, part in zip(eighths, parts, strict=True)]
        lines.append("".join(f" {BARS[min(8, max(0, e))] * (AGE_CELLS - 2)} " for e in eighths))
    return "\n".join(lines)


def ages(counts: Mapping[int, int], allowed: int, most: int, rows: int) -> Text:
    """Part of the trained tokens by age, as upright bars; the last of at most `most` holds all that is older."""
    total = max(1, sum(counts.values()))
    columns = min(max(allowed, 0) + 1, most)
    parts = [counts.get(age, 0) / total for age in range(columns)]
    parts[-1] += sum(count for age, count in counts.items() if age >= columns) / total
    names = [f"{age}" for age in range(columns)]
    if allowed >= columns:
        names[-1] += "+"
    shares = ["" if not part else "<1%" if part < 0.005 else f"{part:.0%}" for part in parts]
    text = Text().append(upright(parts, rows) + "\n", "cyan")
    text.append("".join(share.center(AGE_CELLS) for share in shares) + "\n")
    return text.append("".join(name.center(AGE_CELLS) for name in names), ROUTINE)


def figure(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
