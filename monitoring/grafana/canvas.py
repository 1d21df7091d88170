"""The page that panels are drawn on: cards on Grafana's grid, each with its title, its axes and its legend.

Invariant: a panel is where the dashboard has it, and nothing in it lies over anything else. Refuses to know where
answers are from, and what is drawn inside the axes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from monitoring.grafana.board import Dashboard, Panel
from monitoring.grafana.draw import DRAWN, FAINT, GRID, INK, SMALL, Answer, Page, colours, kind
from monitoring.grafana.units import text

WIDTH, COLUMN, CELL, HEAD = 1536, 64, 36, 46  # logical pixels: of the page, of a cell of the grid, of the title
GAP, PAD, TITLE, LEGEND, LEFT, TICKS = 8, 9, 22, 13, 52, 15
SCALE = 2  # pixels of the file a logical pixel
PAPER = "#f4f5f7"
COLOURS = 128  # of the file: a third of its size, and nobody sees it


def height_of(dashboard: Dashboard) -> int:
    """Of the page, logical pixels."""
    return HEAD + CELL * max(y + h for _, y, _, h in (panel.grid for panel in dashboard.everything)) + GAP


class Canvas:
    """The page; its coordinates are logical pixels from the top left."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100 * SCALE, facecolor=PAPER)
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()  # type: ignore[no-untyped-call]

    def png(self) -> bytes:
        """All of it."""
        drawn, out = io.BytesIO(), io.BytesIO()
        self.figure.savefig(drawn, format="png", facecolor=PAPER)
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(out, format="png", optimize=True)
        return out.getvalue()

    def heading(self, title: str, about: str) -> None:
        """At the top."""
        self._text(GAP + 4, 26, title, size=13, weight="bold", color=INK)
        self._text(WIDTH - GAP - 4, 26, about, size=8.5, color=FAINT, ha="right")

    def row(self, panel: Panel) -> None:
        """The heading of a row."""
        _, y, _, _ = panel.grid
        self._text(GAP + 4, HEAD + y * CELL + CELL - 10, panel.title, size=10, weight="bold", color=INK)

    def panel(self, panel: Panel, found: Sequence[Answer], page: Page) -> None:
        """A card with its title, what is drawn, and a legend."""
        column, line, across, down = panel.grid
        left, top = column * COLUMN + GAP / 2, HEAD + line * CELL
        width, height = across * COLUMN - GAP, down * CELL - GAP
        self._card(left, top, width, height)
        self._text(left + PAD, top + 16, panel.title, size=7.5, weight="bold", color=INK)
        of = kind(panel)
        plain = of == "stat"
        rows = [] if of in ("stat", "state-timeline", "heatmap") else self._legend_rows(panel, found, width - 2 * PAD)
        indent = 0 if plain else LEFT + (92 if of == "state-timeline" else 0)
        below = 2 if plain else TICKS + LEGEND * len(rows) + 6
        axes = self._axes(left + PAD + indent, top + TITLE + 4, width - 2 * PAD - indent, height - TITLE - 6 - below)
        axes.set_xlim(page.begin, page.end)
        if not found:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=FAINT, size=9)
            return
        DRAWN[of](axes, panel, found, page)
        axes.xaxis.set_major_locator(MaxNLocator(5 if across < 12 else 9, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: page.elapsed(value)))
        for number, row in enumerate(rows):
            self._legend(left + PAD, top + height - 6 - LEGEND * (len(rows) - 1 - number), row)

    def _legend_rows(self, panel: Panel, found: Sequence[Answer], width: float) -> list[list[tuple[str, str, float]]]:
        """(text, colour, width) of each entry, in as many rows as they need."""
        rows: list[list[tuple[str, str, float]]] = [[]]
        for answer, colour in zip(found, colours(found), strict=True):
            last = text(answer.series.last, str(panel.defaults["unit"]), panel.defaults.get("decimals"))
            said = f"{answer.label}  {last}"
            needs = self._width(said) + 30
            if rows[-1] and sum(entry[2] for entry in rows[-1]) + needs > width:
                rows.append([])
            rows[-1].append((said, colour, needs))
        return [row for row in rows if row]

    def _legend(self, left: float, base: float, row: Sequence[tuple[str, str, float]]) -> None:
        for said, colour, needs in row:
            x, y = left / WIDTH, 1 - (base - 2) / self.height
            swatch = Rectangle((x, y), 11 / WIDTH, 3 / self.height, transform=self.figure.transFigure, color=colour)
            self.figure.add_artist(swatch)
            self._text(left + 15, base, said, size=SMALL, color=INK)
            left += needs

    def _width(self, said: str) -> float:
        width, _, _ = self.renderer.get_text_width_height_descent(said, FontProperties(size=SMALL), ismath=False)
        return float(width) / SCALE

    def _card(self, left: float, top: float, width: float, height: float) -> None:
        at = (left / WIDTH, 1 - (top + height) / self.height)
        card = Rectangle(at, width / WIDTH, height / self.height, transform=self.figure.transFigure, zorder=-1)
        card.set(linewidth=0.8, edgecolor="#d8dbe0", facecolor="white")
        self.figure.add_artist(card)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        at = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(at)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=FAINT, pad=3)
        return axes

    def _text(self, left: float, base: float, said: str, **style: object) -> None:
        self.figure.text(left / WIDTH, 1 - base / self.height, said, va="baseline", **style)  # type: ignore[arg-type]
