"""Dashboards that show data: every query of every panel, asked of a real Prometheus that watches a real run."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from monitoring.grafana.board import Dashboard, Panel, Query, committed
from monitoring.grafana.expressions import filled, names
from tests.monitoring.grafana.known import VALUES
from tests.monitoring.promql import OF_VLLM
from tests.system.pipeline import wait_until
from tests.system.scraped import ScrapedRun, engine_flags, flags

WINDOW = {**VALUES, "window": "10s"}
# Names without a finite value in this run, and why. Whatever else a panel asks for has to come.
ABSENT: Mapping[str, str] = {
    "headrace_generator_penalty_component_total": "no component of the addition task takes anything away",
    **dict.fromkeys(
        [
            "vllm:generation_tokens_total",
            "vllm:kv_cache_usage_perc",
            "vllm:num_preemptions_total",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prompt_tokens_total",
        ],
        "the engine of a tiny run is transformers",
    ),
}


def queries() -> Iterator[tuple[Dashboard, Panel, Query]]:
    for dashboard in committed():
        for panel in dashboard.panels:
            for query in panel.queries:
                yield dashboard, panel, query


def expected(query: Query) -> bool:
    """It has to show something; a name that no process shows yet cannot."""
    return not names([query.expression]) & (ABSENT.keys() | OF_VLLM.keys())


@pytest.fixture(scope="module")
def run(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScrapedRun]:
    with ScrapedRun(tmp_path_factory.mktemp("runs"), flags(taught)) as run:
        run.start_all()
        steps, roles = filled("headrace_learner_step > 3", {}), {"exporter", "generator", "learner"}
        wait_until(lambda: run.asked.now(steps) and run.jobs == roles, "all is scraped and some steps are done")
        yield run


def await_all(run: ScrapedRun, silent: dict[tuple[str, str, str], str], seconds: float) -> None:
    """Until each expression has had a number; those that had are taken out of `silent`."""

    def asked() -> bool:
        assert run.processes["learner"].poll() is None, run.log("learner")[-3000:]
        for key, expression in list(silent.items()):
            if any(series.finite for series in run.asked.now(filled(expression, WINDOW))):
                del silent[key]
        return not silent

    try:
        wait_until(asked, "every panel has shown a number", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; not yet: {sorted(silent)}") from None


def test_every_panel_shows_data_of_a_real_run(run: ScrapedRun) -> None:
    wanted = {(d.name, p.title, q.legend): q.expression for d, p, q in queries() if expected(q)}
    rarely = {key: wanted.pop(key) for key in list(wanted) if "headrace_generator_waiting" in wanted[key]}
    assert rarely
    await_all(run, wanted, 120)
    run.processes["learner"].send_signal(signal.SIGSTOP)  # now generators have something to wait for
    try:
        await_all(run, rarely, 60)
    finally:
        run.processes["learner"].send_signal(signal.SIGCONT)


def test_what_is_excepted_shows_nothing_indeed(run: ScrapedRun) -> None:
    excepted = [q.expression for _, _, q in queries() if names([q.expression]) & ABSENT.keys()]
    assert {name for name in names(excepted) if name in ABSENT} == ABSENT.keys(), "no longer asked for"
    for expression in excepted:
        assert not any(series.finite for series in run.asked.now(filled(expression, WINDOW))), expression


def test_legends_name_labels_that_the_series_carry(run: ScrapedRun) -> None:
    seen = 0
    for _, panel, query in queries():
        for series in run.asked.now(filled(query.expression, WINDOW)):
            for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
                assert label in series.labels, f"{panel.title}: {query.legend}"
                seen += 1
    assert seen > 50


def test_people_can_choose_job_run_and_generator(run: ScrapedRun) -> None:
    generators = next(d for d in committed() if d.name == "generators")
    for variable in generators.raw["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.+),(\w+)\)", variable["query"])
            assert inner
            found = run.asked.label_values(inner[2], filled(inner[1], WINDOW))
            where = next(flag for flag in run.flags if "generator_port" in flag).split("=")[1]
            roles = ["exporter", "generator", "learner"]
            assert found == {"job": roles, "run": ["tiny"], "instance": [f"127.0.0.1:{where}"]}[inner[2]]


@pytest.mark.engine
def test_every_panel_about_vllm_shows_data_of_a_real_run(taught: Path, tmp_path: Path) -> None:
    wanted = {(d.name, p.title, q.legend): q.expression for d, p, q in queries()}
    wanted = {key: expression for key, expression in wanted.items() if names([expression]) & OF_VLLM.keys()}
    assert len(wanted) > 5
    with ScrapedRun(tmp_path, [*flags(taught), *engine_flags()]) as run:
        await_all(run.start_all(), wanted, 250)
