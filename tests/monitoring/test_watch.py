"""What can be known of a run from outside: whether it goes on, what it is at, how long it has been and will be."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.scale import want
from monitoring.endpoints import Answer
from monitoring.metrics import GeneratorMetrics
from monitoring.recipe import resolved
from monitoring.watch import Watch
from tests.monitoring.fabricated import BEGAN, Run
from tests.monitoring.test_endpoints import served
from tests.ports import free_port
from tests.system.pipeline import wait_until


@contextmanager
def watching(run: Run) -> Iterator[Watch]:
    watch = Watch(run.folder, resolved(run.folder), clock=lambda: run.now)
    try:
        yield watch
    finally:
        watch.close()


def launch(run: Run, phase: str, at: float) -> object:
    """A launcher holds the folder and says what it is at since `at`; its traces are as old."""
    hold = run.folder.hold()
    assert hold is not None
    run.folder.phase.write_text(phase)
    run.folder.log("").parent.mkdir(exist_ok=True)
    for path in (run.folder.pid, run.folder.phase, run.folder.recipe, run.folder.log("").parent):
        os.utime(path, (at, at))
    return hold


def test_the_launchers_phase_shows_until_a_step_is_taken(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    with watching(run) as watch:
        run.now = BEGAN + 30
        sight = watch.look()
        assert (sight.status, sight.status_since, sight.going) == ("starting the generators", BEGAN, True)
        assert (sight.elapsed, sight.left) == (30, None)
        run.plain_step(1, seconds=10)
        sight = watch.look()
        assert (sight.status, sight.status_since, sight.elapsed) == ("training", None, 40)
    assert hold


def test_after_a_restart_the_phase_shows_until_the_next_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1)
    run.now += 1000
    hold = launch(run, "starting Redis", at=run.now)
    run.restart()
    with watching(run) as watch:
        assert watch.look().status == "starting Redis"
        assert watch.look().left is None
        run.plain_step(2)
        assert watch.look().status == "training"
    assert hold


def test_time_left_follows_the_recent_steps_and_counts_down(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20)
    hold = launch(run, "starting the generators", at=BEGAN - 5)
    run.plain_step(1, seconds=300)  # the engines' start is no pace
    with watching(run) as watch:
        assert watch.look().left is None
        run.plain_step(2, seconds=20)
        run.plain_step(3, seconds=400)  # nor is a restart
        run.plain_step(4, seconds=20)
        assert watch.look().left == 16 * 20
        run.now += 5
        assert watch.look().left == 16 * 20 - 5
        run.now += 500
        assert watch.look().left == 15 * 20
        for step in range(5, 21):
            run.plain_step(step)
        assert (watch.look().status, watch.look().left) == ("finishing", None)
    assert hold


def test_a_folder_without_launcher_and_learner_is_not_running(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1, seconds=10)
    run.folder.phase.write_text("stopping")
    with watching(run) as watch:
        run.now += 5000
        assert not watch.undecided  # its endpoints are off: there is nobody to ask
        sight = watch.look()
    assert (sight.going, sight.status, sight.learner) == (False, "not running", None)
    assert sight.elapsed == 10  # up to the last record


def test_a_learner_that_has_said_why_it_ends_is_finishing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    run.plain_step(1)
    run.end("no signal")
    with watching(run) as watch:
        assert (watch.look().status, watch.look().going) == ("finishing", True)
        run.folder.summary.write_text("{}")
        assert (watch.look().status, watch.look().going) == ("no signal", False)
    assert hold


def test_a_summary_says_that_the_run_is_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "stopping", at=BEGAN)
    run.folder.summary.write_text("{}")
    with watching(run) as watch:
        assert (watch.look().going, watch.look().status) == (False, "finished")
    assert hold


def endpoints(run_ports: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {"monitoring": {"learner_port": run_ports[0], "generator_port": run_ports[1]}}


def test_a_run_started_by_hand_goes_on_while_its_learner_answers(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    run = Run(tmp_path, sections=endpoints(ports))
    run.plain_step(1)
    with watching(run) as watch:
        with served(run.metrics, ports[0]):
            run.now = heard(watch).at
            sight = watch.look()
            assert (sight.going, sight.status) == (True, "training")
        run.now += 10
        assert watch.look().going  # it may just be busy
        run.now += 10
        assert not watch.look().going


def heard(watch: Watch) -> Answer:
    """What the learner says, once it does."""
    wait_until(lambda: watch._learner.answer, "the learner answers")
    answer = watch._learner.answer
    assert answer is not None
    return answer


def test_another_runs_learner_on_our_port_is_not_ours(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    ours, other = Run(tmp_path, "ours", sections=endpoints(ports)), Run(tmp_path, "other")
    ours.plain_step(1)
    other.now += 3.5
    other.plain_step(1)
    with served(other.metrics, ports[0]), watching(ours) as watch:
        ours.now = heard(watch).at
        assert not watch.look().going


def test_generators_are_found_port_by_port_and_their_rates_added_up(tmp_path: Path) -> None:
    first = consecutive_ports()
    run = Run(tmp_path, sections=endpoints((0, first)) | {"generator": {"count": 2}})
    hold = launch(run, "starting the generators", at=BEGAN)
    one, two = GeneratorMetrics(), GeneratorMetrics()
    with served(one, first), served(two, first + 1), watching(run) as watch:
        wait_until(lambda: all(g.answer for g in watch._generators), "both were asked")
        assert watch.look().tokens_per_second is None
        rounds = watch._endpoints.rounds
        one.tokens.labels(kind="train").inc(1000)
        two.tokens.labels(kind="train").inc(1000)
        wait_until(lambda: watch._endpoints.rounds > rounds + 1, "both were asked again")
        answer = watch._generators[0].answer
        assert answer is not None
        run.now = answer.at
        rates = [g.rates["generator_tokens_total"].per_second or 0.0 for g in watch._generators]
        assert min(rates) > 0
        assert watch.look().tokens_per_second == pytest.approx(sum(rates))
        assert len(watch.look().generators) == 2
    assert hold


def test_a_run_that_is_scaled_shows_as_many_generators_as_it_has(tmp_path: Path) -> None:
    """What was known of those that stay is not forgotten."""
    first = consecutive_ports()
    run = Run(tmp_path, sections=endpoints((0, first)))
    hold = launch(run, "starting the generators", at=BEGAN)
    with served(GeneratorMetrics(), first), watching(run) as watch:
        wait_until(lambda: watch._generators[0].answer, "it was asked")
        answer = watch._generators[0].answer
        want(run.folder, 2)
        seen = watch.look().generators
        assert list(seen) == ["generator 0", "generator 1"]
        assert seen["generator 0"] is not None
        assert seen["generator 0"].at >= (answer.at if answer else 0.0)
        assert seen["generator 1"] is None, "it is not up yet"
        want(run.folder, 0)
        os.utime(run.folder.generators, (BEGAN, BEGAN))  # whatever the clock of the disk says: it has changed
        assert watch.look().generators == {}
    assert hold


def consecutive_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


def test_the_recipe_of_the_folder_is_followed_when_the_launcher_writes_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = resolved(run.folder)
    text = run.folder.recipe.read_text()
    watch = Watch(run.folder, before, clock=lambda: run.now)
    try:
        run.folder.recipe.write_text("")  # caught in the middle of being written
        assert watch.look().steps == before.run.steps
        run.folder.recipe.write_text(text.replace("steps = 45", "steps = 60"))
        os.utime(run.folder.recipe, (BEGAN + 9, BEGAN + 9))
        assert watch.look().steps == 60
    finally:
        watch.close()


def test_a_run_began_with_its_oldest_trace(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN - 60)
    run.plain_step(1, seconds=10)
    with watching(run) as watch:
        assert watch.look().elapsed == 70
        for path in (run.folder.pid, run.folder.phase, run.folder.recipe, run.folder.log("").parent):
            os.utime(path, (run.now + 100, run.now + 100))  # a copy of the folder: only its records are old
        assert watch.look().elapsed == 10
    assert hold
