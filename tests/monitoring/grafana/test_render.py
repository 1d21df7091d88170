"""Pictures of dashboards: every kind of panel, with answers of every awkward kind, looked at pixel by pixel."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from broker.errors import Refused
from monitoring.grafana.board import Dashboard, Panel, committed
from monitoring.grafana.canvas import CELL, COLUMN, HEAD, SCALE, WIDTH, Canvas, height_of
from monitoring.grafana.draw import NAMED, PALETTE, Answer, Page
from monitoring.grafana.render import png
from monitoring.prometheus_api import Prometheus, Series
from tests.ports import free_port

PAGE = Page(1000.0, 1100.0, 1.0)
TIMES = [1000.0 + i for i in range(101)]
BLUE, RED, GREEN = PALETTE[0], NAMED["red"], NAMED["green"]


def panel(kind: str = "timeseries", unit: str = "none", *, width: int = 8, **defaults: Any) -> Panel:
    place = {"x": 0, "y": 0, "w": width, "h": 5}
    return Panel(
        {"id": 1, "title": "T", "type": kind, "gridPos": place, "fieldConfig": {"defaults": {"unit": unit, **defaults}}}
    )


def series(values: list[float], labels: Mapping[str, str] | None = None) -> Series:
    return Series(labels or {}, TIMES[: len(values)], values)


def drawn(of: Panel, *answers: Answer) -> np.ndarray:
    """Pixels (H, W, 3) of a page with that panel alone."""
    canvas = Canvas(HEAD + 6 * CELL)
    canvas.panel(of, list(answers), PAGE)
    return np.asarray(matplotlib.image.imread(io.BytesIO(canvas.png())))[..., :3]


def of_colour(pixels: np.ndarray, colour: str, alpha: float = 1.0) -> np.ndarray:
    """Where it is, (H, W), laid over white."""
    wanted = [1 - alpha * (1 - int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5)]
    return np.abs(pixels - wanted).max(axis=2) < 0.02  # type: ignore[no-any-return]


def rows_of(pixels: np.ndarray, colour: str, alpha: float = 1.0) -> np.ndarray:
    """The rows in which a colour is, from the top."""
    return np.flatnonzero(of_colour(pixels, colour, alpha).any(axis=1))


def plot(pixels: np.ndarray) -> np.ndarray:
    """Without the legend, which has the colours as well."""
    return pixels[: SCALE * (HEAD + 4 * CELL)]


def test_a_picture_is_twice_the_page_and_the_panel_where_the_grid_has_it() -> None:
    pixels = drawn(panel())
    assert pixels.shape[1] == SCALE * WIDTH == 2 * 24 * COLUMN
    white = np.flatnonzero((pixels > 0.999).all(axis=2).any(axis=0))
    assert (white[0] // SCALE, white[-1] // SCALE) == pytest.approx((4, 8 * COLUMN - 4), abs=2)


def test_a_line_rises_from_left_to_right() -> None:
    rows = rows_of(plot(drawn(panel(), Answer("a", series([float(i) for i in range(101)])))), BLUE)
    assert rows[-1] - rows[0] > 0.7 * SCALE * 3 * CELL


def test_a_flat_line_at_zero_is_seen() -> None:
    assert len(rows_of(plot(drawn(panel(min=0.0), Answer("a", series([0.0] * 101)))), BLUE)) > 0


def test_what_is_allowed_is_red_and_takes_no_colour_from_the_rest() -> None:
    ours, limit = Answer("oldest", series([1.0] * 101)), Answer("allowed", series([4.0] * 101), dashed=True)
    pixels = plot(drawn(panel(), limit, ours))
    assert rows_of(pixels, RED)[0] < rows_of(pixels, BLUE)[0]


def test_a_limit_is_drawn_where_it_is_near_and_else_leaves_the_lines_their_room() -> None:
    steps = [{"value": None, "color": "green"}, {"value": 0.9, "color": "red"}]
    of = panel(thresholds={"steps": steps}, min=0.0)
    assert len(rows_of(plot(drawn(of, Answer("a", series([0.8] * 101)))), RED)) > 0
    assert len(rows_of(plot(drawn(of, Answer("a", series([0.1] * 101)))), RED)) == 0


def test_series_are_stacked() -> None:
    of = panel(custom={"stacking": {"mode": "normal"}}, min=0.0)
    pixels = plot(drawn(of, Answer("below", series([1.0] * 101)), Answer("above", series([3.0] * 101))))
    below, above = rows_of(pixels, BLUE, 0.75), rows_of(pixels, PALETTE[1], 0.75)
    assert above[-1] < below[0], "nothing of one lies over the other"
    assert len(above) == pytest.approx(3 * len(below), rel=0.1)


@pytest.mark.parametrize(("value", "colour"), [(0.5, GREEN), (0.95, RED)])
def test_a_figure_has_the_colour_of_its_limit(value: float, colour: str) -> None:
    steps = [{"value": None, "color": "green"}, {"value": 0.9, "color": "red"}]
    assert (
        len(rows_of(drawn(panel("stat", thresholds={"steps": steps}), Answer("a", series([value] * 101))), colour)) > 5
    )


def test_bars_of_states_are_as_long_as_they_lasted_the_longest_first() -> None:
    short, long = Answer("short", series([1.0] * 20)), Answer("long", series([1.0] * 80))
    pixels = plot(drawn(panel("state-timeline"), short, long))
    first, second = (of_colour(pixels, colour, 0.85) for colour in PALETTE[:2])
    assert first.any(axis=0).sum() == pytest.approx(4 * second.any(axis=0).sum(), rel=0.05)
    assert np.flatnonzero(first.any(axis=1))[-1] < np.flatnonzero(second.any(axis=1))[0]


def test_a_heat_map_is_dark_where_most_observations_fell() -> None:
    counts = {"1": 0.0, "2": 90.0, "4": 100.0, "+Inf": 100.0}  # cumulative: 90 between 1 and 2, 10 between 2 and 4
    answers = [Answer(le, series([n] * 101, {"le": le})) for le, n in counts.items()]
    blueness = plot(drawn(panel("heatmap"), *answers))[:, SCALE * 250]
    shades = blueness.sum(axis=1)[SCALE * (HEAD + 26) :]
    most, some = np.flatnonzero(shades == shades.min()), np.flatnonzero((shades > shades.min() + 0.1) & (shades < 2.4))
    assert len(most) == pytest.approx(len(some), abs=4), "a band each"
    assert some[-1] < most[0], "the longer ones above"


AWKWARD: list[list[float]] = [[], [math.nan], [5.0], [math.nan, 1.0, math.inf, math.nan], [1e-12] * 101, [-3.0] * 101]


@pytest.mark.parametrize("values", AWKWARD, ids=str)
@pytest.mark.parametrize("kind", ["timeseries", "stat", "state-timeline", "heatmap"])
def test_no_answer_is_too_odd_to_be_drawn(kind: str, values: list[float]) -> None:
    steps = {"steps": [{"value": None, "color": "green"}]}
    drawn(panel(kind, "s", thresholds=steps), Answer("a", series(values, {"le": "+Inf"})))


def test_long_legends_take_the_rows_they_need_and_stay_on_the_card() -> None:
    answers = [Answer(f"a rather long name, number {i}", series([float(i)] * 101)) for i in range(8)]
    pixels = drawn(panel(), *answers)
    below = pixels[SCALE * (HEAD + 5 * CELL - 4) :, SCALE * 20 : SCALE * 400]
    assert (below > 0.9).all(), "nothing hangs over the card's edge"


def test_a_prometheus_that_is_away_is_one_line(tmp_path: Path) -> None:
    nobody = Prometheus(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Refused, match=r"no Prometheus answers on .*`make monitoring` starts one"):
        png(committed()[0], nobody, PAGE, {"run": "x", "window": "1m"})


def test_a_page_is_as_high_as_its_dashboard(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    places = [{"x": 0, "y": 0, "w": 24, "h": 3}, {"x": 0, "y": 3, "w": 8, "h": 7}]
    path.write_text(json.dumps({"title": "D", "panels": [{"gridPos": place} for place in places]}))
    assert height_of(Dashboard(path)) == HEAD + 10 * CELL + 8
