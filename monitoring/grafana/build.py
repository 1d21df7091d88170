"""Our charts as Grafana's dashboards, by Grafana's own SDK.

Invariant: the same charts make the same JSON, byte for byte. Refuses to know any metric. The one file that needs
grafana-foundation-sdk: to look at the dashboards, nobody does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.grafana.chart import BLUE, BOUND, Board, Chart, Kind, Row
from monitoring.grafana.expressions import scoped

COLUMNS = 24  # of Grafana's grid
TAG = "headrace"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
ANY_PROCESS = '__name__=~"headrace_.+_last_progress_seconds"'


def document(board: Board) -> str:
    """The dashboard's JSON."""
    found = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([TAG])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_links())
        .annotation(_alerts())
    )
    for variable in variables(board):
        found.with_variable(variable)
    for row in board.rows:
        if row.title:
            found.with_row(dashboard.Row(row.title).id(row.number))
        for panel in _placed(row, board):
            found.with_panel(panel)
    return json.dumps(found.build(), cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"


def variables(board: Board) -> Iterator[Any]:
    """What a person chooses. A Prometheus whose targets carry no label `run` has one nameless run, which is chosen."""
    yield dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    yield _asked("job", "Job", f"label_values({{{ANY_PROCESS}}},job)", several=True)
    yield _asked("run", "Run", f'label_values({{{ANY_PROCESS},job=~"$job"}},run)', several=False)
    if board.by_instance:
        query = 'label_values(headrace_generator_slots{job=~"$job",run="$run"},instance)'
        yield _asked("instance", "Generator", query, several=True)
    window = models.VariableOption(text="5m", value="5m", selected=True)
    yield dashboard.IntervalVariable("window").label("Rates over").values("1m,5m,15m,1h").current(window)


def _asked(name: str, label: str, query: str, *, several: bool) -> Any:
    found = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    found.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)
    if several:
        found.multi(True).include_all(True).all_value(".+")
        found.current(models.VariableOption(text="All", value="$__all", selected=True))
    return found


def _links() -> Any:
    found = dashboard.DashboardLink("Headrace").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return found.include_vars(True).keep_time(True).icon("dashboard").tooltip("The other dashboards of this run")


def _alerts() -> Any:
    found = dashboard.AnnotationQuery().name("Alerts").datasource(SOURCE).enable(True).icon_color("red")
    return found.expr('ALERTS{alertstate="firing"}')


def _placed(row: Row, board: Board) -> Iterator[Any]:
    for chart in row.charts:
        panel = BUILDERS[chart.kind](chart)
        panel.id(chart.number).title(chart.title).description(chart.how).datasource(SOURCE)
        panel.span(COLUMNS // row.across).height(row.height).unit(chart.unit)
        for setter, value in ((panel.min, chart.low), (panel.max, chart.high), (panel.decimals, chart.decimals)):
            if value is not None:
                setter(value)
        for letter, (legend, expression) in zip("ABCDEFGH", chart.queries.items(), strict=False):
            query = prometheus.Dataquery().ref_id(letter).legend_format(legend).datasource(SOURCE).range()
            query.expr(scoped(expression, by_instance=board.by_instance))
            panel.with_target(query.format(PromQueryFormat.HEATMAP if chart.kind == "heat" else _SERIES))
        yield panel


_SERIES = PromQueryFormat.TIME_SERIES


def _lines(chart: Chart) -> Any:
    panel = timeseries.Panel().line_width(1.5).fill_opacity(8).show_points(shapes.VisibilityMode.NEVER)
    panel.span_nulls(60_000.0)  # a gap of a minute is a gap; a missed scrape is none
    panel.tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
    legend = common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.LIST)
    panel.legend(legend.placement(shapes.LegendPlacement.BOTTOM).show_legend(True).calcs(["lastNotNull"]))
    if chart.limits:
        panel.thresholds(_thresholds(chart))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED))
    dashed = [
        models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": "red"}),
        models.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]}),
        models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
    ]
    if any(legend.startswith(BOUND) for legend in chart.queries):
        panel.override_by_regexp(f"/^{BOUND}/", dashed)
    return panel


def _stack(chart: Chart) -> Any:
    panel = _lines(chart).fill_opacity(55).line_width(0.5)
    return panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))


def _figure(chart: Chart) -> Any:
    panel = stat.Panel().thresholds(_thresholds(chart))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(shapes.BigValueGraphMode.AREA if not chart.words else shapes.BigValueGraphMode.NONE)
    panel.color_mode(shapes.BigValueColorMode.VALUE).text_mode(shapes.BigValueTextMode.VALUE)
    if chart.words:
        results = {str(value): models.ValueMappingResult(text=text) for value, text in chart.words.items()}
        panel.mappings([models.ValueMap(options=results)])
    return panel


def _states(_: Chart) -> Any:
    panel = statetimeline.Panel().show_value(shapes.VisibilityMode.NEVER).row_height(0.8).merge_values(True)
    panel.legend(common.VizLegendOptions().show_legend(False))
    return panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color(BLUE))


def _heat(chart: Chart) -> Any:
    panel = heatmap.Panel().cell_gap(1).y_axis(heatmap.YAxisConfig().unit(chart.unit)).show_color_scale(True)
    scale = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    return panel.color(scale.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5))


def _thresholds(chart: Chart) -> Any:
    steps = [models.Threshold(color=chart.base), *(models.Threshold(value=v, color=c) for v, c in chart.limits)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


BUILDERS: Mapping[Kind, Callable[[Chart], Any]] = {
    "lines": _lines,
    "stack": _stack,
    "figure": _figure,
    "states": _states,
    "heat": _heat,
}
