"""A run of another machine, through a real Prometheus: found by name, followed, lost from sight and found again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from broker.errors import Refused
from monitoring.afar import Afar, chosen
from monitoring.hearsay import Questions
from monitoring.metrics import LearnerMetrics
from monitoring.server import serve
from monitoring.sight import Sight
from tests.monitoring.scraping import Scraping, scraping, target
from tests.monitoring.test_endpoints import served
from tests.monitoring.test_panel import drawn, row, words
from tests.monitoring.test_screens import Story
from tests.monitoring.test_top import into_pipe
from tests.ports import free_port
from tests.system.pipeline import ROOT, wait_until


@contextmanager
def watching(
    server: Scraping, gone_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Afar]:
    watch = Afar(Questions(server.asked, "demo", gone_seconds=gone_seconds, clock=clock), clock)
    try:
        yield watch
    finally:
        watch.close()


def seen(watch: Afar, ready: Callable[[Sight], object], what: str) -> Sight:
    """A look at which that is so."""
    found: list[Sight] = []

    def look() -> bool:
        sight = watch.look()
        found[:] = [] if sight is None else [sight]
        return sight is not None and bool(ready(sight))

    wait_until(look, what, 60)
    return found[0]


class Exporter:
    """The one figure of an exporter that says whether the run is over."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.finished = Gauge("headrace_run_finished", "1 once the run is over.", registry=self.registry)


def test_the_run_is_the_one_that_is_named_or_the_only_one(tmp_path: Path) -> None:
    one, two = LearnerMetrics(), LearnerMetrics()
    with served(one) as first, served(two) as second, scraping(tmp_path) as server:
        with pytest.raises(Refused, match="knows no run"):
            chosen(server.asked, None)
        with pytest.raises(Refused, match="no run 'demo': it knows none"):
            chosen(server.asked, "demo")
        server.point(target("learner", first.port))
        known = server.asked.label_values
        wait_until(lambda: known("run", "headrace_learner_step") == ["demo"], "one is known")
        assert chosen(server.asked, None) == "demo"
        server.point(target("learner", first.port), target("learner", second.port, "other"))
        wait_until(lambda: "other" in known("run", "headrace_learner_step"), "both are known")
        with pytest.raises(Refused, match="several runs: demo, other: name one: RUN=other"):
            chosen(server.asked, None)
        assert chosen(server.asked, "other") == "other"


def test_a_run_is_followed_as_from_its_folder(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.tell()
    exporter = Exporter()
    health = serve(exporter, "127.0.0.1", free_port(), dict)
    targets = story.targets
    with story.served(), scraping(tmp_path / "p", *targets, target("exporter", health.port)) as server:
        wait_until(lambda: server.asked.now("headrace_learner_step"), "the learner was scraped")
        with watching(server) as watch:
            sight = seen(
                watch, lambda s: len(s.generators) == 2 and s.learner and s.tokens_per_second == 0.0, "all is known"
            )
            assert (sight.name, sight.about) == ("demo", server.service.url)
            assert (sight.status, sight.going) == ("training", True)
            assert (sight.steps, sight.max_staleness) == (45, 8)
            assert sight.progress.whole.groups == {"trained": 24, "degenerate": 12, "stale": 0, "failed": 0}
            assert sight.progress.last().steps == 12, "it was not watched before"
            lines = drawn(sight)
            assert row(lines, "reward").endswith(" 0.48  first 12 ~0.48  last 12 ~0.48")
            assert any(words(line).startswith("waits for ticket · 2") for line in lines)
            assert any("11 of 16 slots busy · waits for a version · 2" in line for line in lines)

            story.run.now = time.time()
            story.run.plain_step(13, 0.5)
            sight = seen(watch, lambda s: s.step and s.step.step == 13, "the next step is seen")
            assert sight.progress.steps[-1].covers == 1
            assert sight.progress.last(1).groups["trained"] == 2

            exporter.finished.set(1)
            sight = seen(watch, lambda s: not s.going, "its end is seen")
            assert sight.status == "finished"
            assert "alerts" not in "\n".join(drawn(sight))
    health.stop()


def test_a_prometheus_that_goes_away_leaves_the_last_picture_and_is_found_again(tmp_path: Path) -> None:
    story, ahead = Story(tmp_path), [0.0]
    story.tell()
    with story.served(), scraping(tmp_path / "p", *story.targets) as server:
        wait_until(lambda: server.asked.now("headrace_learner_step"), "the learner was scraped")
        with watching(server, clock=lambda: time.monotonic() + ahead[0]) as watch:
            before = seen(watch, lambda s: s.learner and len(s.generators) == 2, "the run is seen")
            assert before.blind is None
            server.service.stop()
            ahead[0] = 3600.0
            sight = seen(watch, lambda s: s.blind, "Prometheus is missed")
            assert drawn(sight)[0].endswith("no Prometheus for 60 min")
            assert drawn(sight)[1:3] == drawn(before)[1:3], "the last picture stays"
            assert sight.going
            server.restart()
            story.run.now = time.time()
            story.run.plain_step(13)
            sight = seen(watch, lambda s: s.blind is None and s.step and s.step.step == 13, "it is found again")
            assert sight.progress.whole.groups["trained"] == 26


def test_processes_that_are_gone_do_not_answer_and_a_run_without_any_is_not_running(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.tell()
    with scraping(tmp_path / "p", *story.targets) as server:
        often = "count_over_time(headrace_learner_step[1m]) > 10"  # an hour is looked at in steps of some seconds
        with story.served():
            wait_until(lambda: server.asked.now(often), "the learner was scraped for some time")
        wait_until(lambda: not server.asked.now("headrace_learner_step"), "it is gone")
        with watching(server) as watch:
            sight = seen(watch, lambda s: True, "Prometheus has answered")
            assert (sight.going, sight.learner) == (True, None), "a minute has not passed"
            assert any(line.endswith("no answer") for line in drawn(sight))
            assert sight.progress.whole.groups["trained"] == 24, "what it did is remembered"
        with watching(server, gone_seconds=2.0) as watch:
            sight = seen(watch, lambda s: not s.going, "it is given up")
            assert sight.status == "not running"


def test_a_log_of_a_run_afar_says_which_steps_a_line_is_of_and_ends_with_the_run(tmp_path: Path) -> None:
    story, exporter = Story(tmp_path), Exporter()
    story.tell()
    health = serve(exporter, "127.0.0.1", free_port(), dict)
    with story.served(), scraping(tmp_path / "p", *story.targets, target("exporter", health.port)) as server:
        wait_until(lambda: server.asked.now("headrace_run_finished"), "the exporter was scraped")
        wait_until(lambda: server.asked.now("headrace_learner_step"), "so was the learner")
        with into_pipe("--prometheus", server.service.url) as view:
            view.shows("steps 1–12/45  reward 0.48  staleness 0.9 (max 4)  trained 24 degenerate 12 stale 0 failed 0")
            exporter.finished.set(1)
            assert view.process.wait(60) == 0
            assert view.text.splitlines()[-1].startswith("demo: finished after step 12 of 45")
    health.stop()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a recipe, or --prometheus URL"),
        (["recipe.toml", "--prometheus", "http://h"], "give a recipe, or --prometheus URL"),
        (["recipe.toml", "--run", "demo"], "--run goes with --prometheus"),
        (["--prometheus", "http://h", "--learner.seed=3"], "unknown: --learner.seed=3"),
        (["--prometheus", "127.0.0.1:1"], "no Prometheus answers on http://127.0.0.1:1"),
    ],
)
def test_a_command_line_that_names_no_run_is_one_line(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.top", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
