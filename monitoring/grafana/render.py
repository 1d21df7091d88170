"""`python -m monitoring.grafana.render PROMETHEUS`: the dashboards as pictures, for those who have no Grafana.

Invariant: each panel is where the dashboard has it, and shows what Prometheus answers to its queries. Refuses to know
what the panels mean.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from monitoring.files import replace_file
from monitoring.grafana.board import Dashboard, Panel, committed
from monitoring.grafana.canvas import Canvas, height_of
from monitoring.grafana.chart import BOUND
from monitoring.grafana.draw import Answer, Page
from monitoring.grafana.expressions import filled
from monitoring.prometheus_api import Prometheus

POINTS = 240  # of a line


def png(dashboard: Dashboard, prometheus: Prometheus, page: Page, values: dict[str, str]) -> bytes:
    """Draw it. `values` are the template variables'. Raises `Refused` where Prometheus has nothing to say."""
    canvas = Canvas(height_of(dashboard))
    canvas.heading(
        dashboard.title, f"run {values['run']} · {page.elapsed(page.end)} min · rates over {values['window']}"
    )
    for panel in dashboard.everything:
        if panel.kind == "row":
            canvas.row(panel)
        else:
            canvas.panel(panel, answers(panel, prometheus, page, values), page)
    return canvas.png()


def answers(panel: Panel, prometheus: Prometheus, page: Page, values: dict[str, str]) -> list[Answer]:
    """Every series that the panel's queries give, called as its legend says."""
    found = []
    for query in panel.queries:
        for series in prometheus.range(filled(query.expression, values), page.begin, page.end, page.step):
            label = re.sub(r"\{\{(\w+)\}\}", lambda m, of=series: of.labels.get(m[1], ""), query.legend)  # type: ignore[misc]
            if series.finite:
                found.append(Answer(label, series, dashed=label.startswith(BOUND)))
    return found


def page_of(prometheus: Prometheus, run: str) -> Page:
    """From the first to the last that was heard of a run's steps. Raises `Refused` if there was nothing for a day."""
    heard = f'_over_time(timestamp(headrace_learner_step{{run="{run}"}} > 0)[1d:5s])'
    ends = [prometheus.now(f"{of}({of}{heard})") for of in ("min", "max")]
    if not all(ends):
        raise Refused(f"Prometheus knows no run {run!r} of the last day", "name one with --run")
    begin, end = (series.values[0] for (series,) in ends)
    return Page(begin, end, max(1.0, (end - begin) / POINTS))


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.grafana.render", description="the dashboards as pictures")
    parser.add_argument("prometheus", help="its URL, such as http://127.0.0.1:9090")
    parser.add_argument("--run", required=True, help="the value of the label `run`")
    parser.add_argument("--window", default="1m", help="what rates are taken over")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for dashboard-….png")
    options = parser.parse_args()
    prometheus = Prometheus(options.prometheus.rstrip("/"))
    page = page_of(prometheus, options.run)
    values = {"job": ".+", "instance": ".+", "run": options.run, "window": options.window}
    for dashboard in committed():
        path = options.out / f"dashboard-{dashboard.name}.png"
        replace_file(path, png(dashboard, prometheus, page, values))
        print(path)


if __name__ == "__main__":
    main()
