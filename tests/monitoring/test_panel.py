"""The screen: everything asked for is on it, and it fits 80 × 24 whatever happens."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from monitoring.alarms import Alarms, Alert
from monitoring.bars import spark
from monitoring.endpoints import Answer
from monitoring.metrics import GeneratorMetrics
from monitoring.panel import panel
from monitoring.sight import Sight
from monitoring.watch import Watch
from tests.monitoring.fabricated import BEGAN, Run
from tests.monitoring.test_endpoints import served
from tests.monitoring.test_watch import launch, watching
from tests.ports import free_port
from tests.system.pipeline import wait_until


def drawn(sight: Sight, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, legacy_windows=False)
    console.print(panel(sight, width, height))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def row(lines: list[str], label: str) -> str:
    return next(line for line in lines if line.strip().startswith(label))


def words(line: str) -> str:
    return " ".join(line.split())


def test_before_the_first_step_it_shows_that_something_happens(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "preparing the model", at=BEGAN)
    with watching(run) as watch:
        run.now += 34
        lines = drawn(watch.look())
    assert "demo" in lines[0]
    assert "smollm2-135m-instruct" in lines[0]
    assert lines[0].endswith("preparing the model · 34 s")
    assert "0/45" in lines[1]
    assert row(lines, "learner").endswith("not up yet")
    assert row(lines, "generators").endswith("not up yet")
    assert hold


def test_a_run_under_way_shows_every_figure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    run.evaluate("start", 0, 0.21)
    for step in range(1, 11):
        run.plain_step(step, 0.05 * step, ages={0: 10, 1: 30, 3: 10})
    run.step(11, {"trained": [[1.0, 0.0] * 2], "stale": [[0.0] * 4]}, {0: 10, 1: 30, 3: 10})
    run.tally.failed()
    run.plain_step(12, 0.6, ages={0: 50})
    run.evaluate("periodic", 12, 0.61, samples=100)
    with watching(run) as watch:
        lines = drawn(watch.look())
    assert lines[0].endswith("training")
    assert words(row(lines, "step")) == "step 12/45 ━━━━━─────────────── version 12 2 min elapsed 6 min left"
    assert row(lines, "reward").endswith("0.60  first 5 0.15  last 5 0.45")
    assert row(lines, "pass@1").split(maxsplit=1)[1] == "start 0.21 (200 samples)   version 12 0.61 (100 samples)"
    assert words(row(lines, "staleness")) == "staleness mean 1.10 max 3 of 8 allowed last step 0.00"
    assert "27%  55%       18%" in "\n".join(lines)
    assert row(lines, "generators").split()[-4:] == ["11", "tok/s", "0.30", "groups/s"]
    assert row(lines, "learner").split()[-4:] == ["5", "tok/s", "0.18", "groups/s"]
    assert row(lines, "groups").split() == ["groups", "trained", "degenerate", "stale", "failed"]
    assert row(lines, "last 5").split() == ["last", "5", "9", "4", "1", "1"]
    assert row(lines, "all").split() == ["all", "23", "11", "1", "1"]
    assert hold


def hear(watch: Watch) -> Sight:
    """A look at the moment at which both sides have been heard."""
    wait_until(lambda: all(e.answer for e in watch._endpoints.all), "both sides were heard")
    watch._clock = lambda: max(e.answer.at if e.answer else 0.0 for e in watch._endpoints.all)
    return watch.look()


def test_it_shows_what_both_sides_wait_for(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    run = Run(tmp_path, sections={"monitoring": {"learner_port": ports[0], "generator_port": ports[1]}})
    hold = launch(run, "starting the generators", at=BEGAN)
    generator = GeneratorMetrics()
    with served(run.metrics, ports[0]), served(generator, ports[1]):
        run.metrics.waiting("no live generator")
        with watching(run) as watch:
            lines = drawn(hear(watch))
        assert "waits: no live generator · 0 s" in row(lines, "learner")
        assert "starting the engine" in row(lines, "generators")

        generator.slots.set(8)
        generator.waiting("ticket")
        with watching(run) as watch:
            lines = drawn(hear(watch))
        assert "0 of 8 slots busy · waits for a ticket · 0 s · version 0" in row(lines, "generators")

        generator.waiting("none")
        run.metrics.waiting("ticket", "t00000012")
        generator.in_flight_groups.set(5)
        generator.policy_version.set(3)
        with watching(run) as watch:
            lines = drawn(hear(watch))
        assert "waits for ticket t00000012 · 0 s" in row(lines, "learner")
        assert "5 of 8 slots busy · last group" in row(lines, "generators")
        assert row(lines, "generators").endswith(" · version 3")
    assert hold


def test_the_last_state_of_a_run_that_is_over_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=2)
    run.plain_step(1)
    run.plain_step(2)
    with watching(run) as watch:
        assert drawn(watch.look())[0].endswith("not running")
        run.folder.summary.write_text("{}")
        assert drawn(watch.look())[0].endswith("finished")


NAMES = [
    "NoStep",
    "LearnerLost",
    "LearnerStarved",
    "DiskFull",
    "NoLiveGenerator",
    "GeneratorLost",
    "GeneratorsIdle",
    "RefreshFailing",
    "StalenessAtItsBound",
    "EffectiveSampleSizeLow",
    "RewardCollapsed",
    "LedgerOutOfBalance",
    "DeadLetters",
    "RedisNearItsMemory",
    "RedisDown",
]
EVERY_ALERT = Alarms([Alert(name, "warning", BEGAN, False, "127.0.0.1:9411") for name in NAMES], now=BEGAN + 90)


def answer(at: float, **figures: float) -> Answer:
    """A generator's, busy, which says these figures."""
    return Answer(at, "none", "", at, at, {f"headrace_generator_{name}": value for name, value in figures.items()})


@pytest.mark.parametrize(("width", "height"), [(40, 24), (80, 24), (80, 60), (200, 24), (200, 50), (300, 90)])
@pytest.mark.parametrize("max_staleness", [0, 40, 64])
def test_no_run_is_too_large_for_the_screen(tmp_path: Path, width: int, height: int, max_staleness: int) -> None:
    rng = random.Random(1)
    depth = {"pipeline_depth": min(2, max_staleness)}
    sections = {"run": {"max_staleness": max_staleness}, "learner": depth, "generator": {"count": 30}}
    run = Run(tmp_path, name="a" * 64, steps=100_000, sections=sections)
    hold = launch(run, "starting the generators " * 10, at=BEGAN - 1e6)
    run.evaluate("start", 0, 0.2, samples=100_000)
    for step in range(99_000, 99_080):
        ages = {rng.randrange(max_staleness + 1): rng.randrange(1, 99) for _ in range(30)}
        run.plain_step(step, rng.uniform(-50, 50), ages=ages, seconds=rng.uniform(1, 5000))
    run.evaluate("periodic", 99_079, 0.9, samples=100_000)
    with watching(run) as watch:
        for _ in range(2):
            seen = watch.look()
            answers = {name: answer(seen.now, slots=512, in_flight_groups=500) for name in seen.generators}
            lines = drawn(replace(seen, generators=answers, alarms=EVERY_ALERT), width, height)
            assert len(lines) < height, "one row is left for the cursor"
            assert max(cell_len(line) for line in lines) <= width
            assert words(row(lines, "generators")).startswith("generators ━")
            run.folder.phase.write_text("stopping")  # the launcher is at something again
    assert hold


def of_alerts(seen: Sight, alarms: Alarms | None, width: int = 80) -> str:
    return words(row(drawn(replace(seen, alarms=alarms), width), "alerts"))


def test_alerts_are_listed_as_far_as_there_is_room_and_the_rest_are_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    alerts = [
        Alert("NoStep", "critical", BEGAN, False),
        Alert("RefreshFailing", "warning", BEGAN, False, "127.0.0.1:9411"),
        Alert("EffectiveSampleSizeLow", "warning", BEGAN, True),
    ]
    with watching(run) as watch:
        seen = watch.look()
        assert of_alerts(seen, None) == "alerts asking Prometheus"
        assert of_alerts(seen, Alarms()) == "alerts none"
        unknown = "no Prometheus on :9490, `make monitoring` starts one"
        assert of_alerts(seen, Alarms(unknown=unknown)) == f"alerts unknown: {unknown}"
        told = Alarms(alerts, now=BEGAN + 120)
        first = "alerts NoStep 2 min · RefreshFailing 127.0.0.1:9411 2 min"
        assert of_alerts(seen, told) == f"{first} +1 more"
        assert of_alerts(seen, told, 200) == f"{first} · EffectiveSampleSizeLow pending 2 min"
        assert of_alerts(seen, EVERY_ALERT, 40) == "alerts NoStep 127.0.0.1:9411 2 mi…"
        run.folder.summary.write_text("{}")
        assert not any("alerts" in line for line in drawn(watch.look())), "of a run that is over there are none"
    assert hold


def test_a_tall_terminal_shows_each_generator_and_the_last_steps_one_by_one(tmp_path: Path) -> None:
    run = Run(tmp_path, sections={"generator": {"count": 30}})
    hold = launch(run, "starting the generators", at=BEGAN)
    for step in range(1, 31):
        run.plain_step(step, 0.01 * step, ages={1: 10}, seconds=10, waited=4)
    with watching(run) as watch:
        seen = watch.look()
        busy = answer(seen.now, slots=8, in_flight_groups=5, policy_version=29, groups_total=71)
        lines = drawn(replace(seen, generators={**seen.generators, "generator 0": busy}), 200, 50)
    assert words(row(lines, "each")) == "each generator 0 5 of 8 busy version 29 71 groups last group 0 s ago"
    assert any(words(line) == "generator 1 no answer" for line in lines)
    assert any(words(line).endswith(" more") for line in lines)
    assert words(row(lines, "steps")) == "steps trained degenerate stale failed reward staleness waited seconds"
    assert words(lines[lines.index(row(lines, "steps")) + 1]) == "30 2 1 0 0 0.30 1.00 40% 10.0"
    assert hold


def test_a_spark_line_averages_what_does_not_fit_and_widens_its_scale() -> None:
    assert spark([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert spark([], 10) == ""
    assert spark([0.0, 0.2, 0.9, 1.0], 2) == "▁█"
    assert spark([0.1] * 1000, 32) == "▁" * 32
    assert spark([-4.0, 0.0, 4.0], 10) == "▁▅█"
