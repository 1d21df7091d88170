"""The committed dashboards: they are what the code says, ask only for what there is, and tell how to be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.recipe import Recipe
from monitoring.catalogue import VLLM
from monitoring.grafana.board import FOLDER, Dashboard, Panel, committed
from monitoring.grafana.expressions import filled, names
from tests.monitoring.grafana.known import PROMETHEUS, VALUES
from tests.monitoring.promql import OF_VLLM, OURS
from tests.system.processes import ROOT

DASHBOARDS = committed()
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels]
EXPRESSIONS = [query.expression for _, panel in PANELS for query in panel.queries]
COUNTED = re.compile(r"_(total|bucket|sum|count)$")
# What stands before a metric, the metric, its selector, what follows: `rate`, …, `[`.
USE = re.compile(r"(\w*)\(?(?<![\w:$\"])(headrace_\w+|vllm:\w+|up|ALERTS)(\{[^}]*\})(\[?)")
SCREEN = 24  # cells of 38 pixels that a screen of 1080 shows


def named(one: tuple[Dashboard, Panel]) -> str:
    dashboard, panel = one
    return f"{dashboard.name}-{panel.number}"


every_panel = pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=map(named, PANELS))


# -- generated --------------------------------------------------------------------------------------------------------


def generated(seed: str, folder: Path) -> dict[str, str]:
    """What another process makes of the code: as `make dashboards` does."""
    code = "import json; from monitoring.grafana.__main__ import documents; print(json.dumps(documents()))"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_what_is_committed_is_what_the_code_says(tmp_path: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed: `make install`")
    first, second = generated("1", tmp_path), generated("2", tmp_path)
    assert first == second, "the same every time"
    assert first == {d.path.name: d.path.read_text(encoding="utf-8") for d in DASHBOARDS}, "run `make dashboards`"


def test_without_the_sdk_the_pin_is_named(tmp_path: Path) -> None:
    (tmp_path / "grafana_foundation_sdk.py").write_text("raise ModuleNotFoundError(name=__name__)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "monitoring.grafana"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    pin = next(line for line in (ROOT / "requirements/dev.txt").read_text().splitlines() if "grafana" in line)
    assert pin.replace("_", "-") in done.stderr
    assert done.stderr.count("\n") == 1


# -- the dashboards ---------------------------------------------------------------------------------------------------


def test_there_are_four_under_names_that_links_know() -> None:
    assert [(d.name, d.raw["uid"]) for d in DASHBOARDS] == [
        ("broker", "headrace-broker"),
        ("generators", "headrace-generators"),
        ("learner", "headrace-learner"),
        ("pipeline", "headrace-pipeline"),
    ]
    assert {path.name for path in FOLDER.iterdir()} == {d.path.name for d in DASHBOARDS}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_a_dashboard_leads_to_the_others_and_lets_people_choose(dashboard: Dashboard) -> None:
    (link,) = dashboard.raw["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        ["headrace"],
        True,
        True,
    )
    assert dashboard.raw["tags"] == link["tags"]
    variables = {v["name"]: v for v in dashboard.raw["templating"]["list"]}
    expected = {"datasource", "job", "run", "window"} | ({"instance"} if dashboard.name == "generators" else set())
    assert variables.keys() == expected
    assert variables["datasource"]["type"] == "datasource"
    assert {v["datasource"]["uid"] for v in variables.values() if "datasource" in v} == {"${datasource}"}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_every_panel_has_a_number_of_its_own_and_a_place_of_its_own(dashboard: Dashboard) -> None:
    numbers = [panel.number for panel in dashboard.everything]
    assert len(numbers) == len(set(numbers))
    cells: set[tuple[int, int]] = set()
    for panel in dashboard.everything:
        x, y, width, height = panel.grid
        taken = {(column, line) for column in range(x, x + width) for line in range(y, y + height)}
        assert x + width <= 24
        assert not taken & cells, f"{panel.title} lies on another"
        cells |= taken


def test_the_pipeline_fits_on_one_screen() -> None:
    pipeline = next(d for d in DASHBOARDS if d.name == "pipeline")
    assert max(y + height for _, y, _, height in (panel.grid for panel in pipeline.everything)) <= SCREEN


# -- every panel ------------------------------------------------------------------------------------------------------


@every_panel
def test_a_panel_says_what_it_shows_and_how_to_read_it(dashboard: Dashboard, panel: Panel) -> None:
    assert panel.title
    assert panel.defaults["unit"]
    assert len(panel.raw["description"].split()) >= 10
    assert re.search(r"[.)]$", panel.raw["description"])
    assert panel.queries
    assert all(query.legend for query in panel.queries)
    sources = [panel.raw["datasource"], *(target["datasource"] for target in panel.raw["targets"])]
    assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)


@every_panel
def test_a_panel_shows_one_run(dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        uses = USE.findall(query.expression)
        assert {name for _, name, _, _ in uses} == names([query.expression]), "each has a selector"
        for _, name, selector, _ in uses:
            assert name == "ALERTS" or 'job=~"$job",run="$run"' in selector, query.expression


@every_panel
def test_counters_are_rated_and_nothing_else_is(dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        for function, name, _, window in USE.findall(query.expression):
            rated = function in ("rate", "increase", "irate") and window == "["
            assert rated == bool(COUNTED.search(name)), f"{name} in {query.expression}"


@every_panel
def test_what_a_description_names_is_there(dashboard: Dashboard, panel: Panel) -> None:
    sections: dict[str, Any] = {name: field.annotation for name, field in Recipe.model_fields.items()}
    for section, key in re.findall(rf"\b({'|'.join(sections)})\.([a-z_0-9]+)", panel.raw["description"]):
        assert key in sections[section].model_fields, f"{section}.{key}"
    makefile = (ROOT / "Makefile").read_text()
    for verb in re.findall(r"`make ([a-z-]+)`", panel.raw["description"]):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), f"make {verb}"


# -- what they ask for ------------------------------------------------------------------------------------------------


def test_every_metric_that_is_named_exists() -> None:
    assert names(EXPRESSIONS) <= OURS.keys() | OF_VLLM.keys() | PROMETHEUS.keys()
    assert not OURS.keys() & OF_VLLM.keys()
    for one in VLLM:
        assert set(one.series) & names(EXPRESSIONS), f"{one.name} is not asked for"


def test_what_counts_is_what_the_catalogue_calls_a_counter() -> None:
    known = OURS | OF_VLLM | PROMETHEUS
    for name in names(EXPRESSIONS):
        assert bool(COUNTED.search(name)) == (known[name] in ("counter", "histogram")), name


def test_every_expression_is_one_that_prometheus_can_read(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: `apt install prometheus`")
    rules = [{"record": f"panel:{i}", "expr": filled(e, VALUES)} for i, e in enumerate(EXPRESSIONS)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout
