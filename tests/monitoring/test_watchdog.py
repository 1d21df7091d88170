"""A process that waits, or gets nowhere, says so by itself: in its log, and on `/healthz` to whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from monitoring.endpoints import ask
from monitoring.metrics import GeneratorMetrics, LearnerMetrics
from monitoring.server import serve
from monitoring.watchdog import EVERY_SECONDS, Alarm, Watchdog
from tests.clock import Clock
from tests.monitoring.test_metrics import HOST, get, value
from tests.ports import free_port
from tests.system.pipeline import wait_until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def told(log: list[Any]) -> list[tuple[str, str, float | None]]:
    """What was said, of what, for how many seconds; and begin anew."""
    lines = [(line["event"], line["reason"], line.get("since_seconds", line.get("lasted_seconds"))) for line in log]
    log.clear()
    return lines


def pass_time(watchdog: Watchdog, clock: Clock, seconds: float) -> None:
    for _ in range(int(seconds / EVERY_SECONDS)):
        clock.now += EVERY_SECONDS
        watchdog.look()


# -- the log ----------------------------------------------------------------------------------------------------------


def test_a_long_wait_is_told_again_at_each_doubling_and_once_when_it_is_over(clock: Clock, log: list[Any]) -> None:
    metrics = LearnerMetrics(clock=clock)
    watchdog = Watchdog(metrics, 60.0)
    metrics.waiting("ticket", "t0000000007")
    pass_time(watchdog, clock, 55)
    assert told(log) == []
    pass_time(watchdog, clock, 5)
    assert log[0]["detail"] == "t0000000007"
    assert log[0]["log_level"] == "warning"
    assert told(log) == [("still waiting", "ticket", 60.0)]
    pass_time(watchdog, clock, 440)
    assert told(log) == [("still waiting", "ticket", seconds) for seconds in (120.0, 240.0, 480.0)]
    metrics.waiting("none")
    pass_time(watchdog, clock, 3600)
    assert told(log) == [("the wait is over", "ticket", 500.0)]


def test_waits_that_follow_each_other_are_not_one_long_wait(clock: Clock, log: list[Any]) -> None:
    metrics = LearnerMetrics(clock=clock)
    watchdog = Watchdog(metrics, 60.0)
    for number in range(10):
        metrics.waiting("ticket", f"t{number}")
        pass_time(watchdog, clock, 40)
    assert told(log) == []


def test_after_a_night_asleep_one_line_is_enough(log: list[Any]) -> None:
    alarm = Alarm(60.0)
    assert [alarm.look("a", s) for s in (59, 30_000, 30_005, 30_700, 31_000)] == ["", "lasts", "", "", "lasts"]
    assert [alarm.look("b", s) for s in (1, 61)] == ["over", "lasts"]
    assert Alarm(0.0).look("a", 1e9) == "", "0 turns it off"


def test_a_process_that_is_busy_and_gets_nowhere_is_told_as_well(clock: Clock, log: list[Any]) -> None:
    metrics = GeneratorMetrics(clock=clock, stall_seconds=600.0)
    watchdog = Watchdog(metrics, 60.0)
    pass_time(watchdog, clock, 595)
    assert told(log) == []
    pass_time(watchdog, clock, 1000)
    assert told(log) == [("no progress", "none", 600.0), ("no progress", "none", 1200.0)]
    metrics.progress()
    pass_time(watchdog, clock, 60)
    assert told(log) == [("progress again", "none", None)]


def test_it_looks_on_a_thread_of_its_own_until_its_context_ends(clock: Clock) -> None:
    metrics, looked = LearnerMetrics(clock=clock), list[float]()

    def pause(seconds: float) -> bool:
        looked.append(seconds)
        clock.now += 60.0
        return len(looked) > 3

    metrics.waiting("checkpoint")
    with structlog.testing.capture_logs() as lines, Watchdog(metrics, 60.0, pause):
        wait_until(lambda: len(looked) > 3, "it has looked three times", 10)
    assert looked == [EVERY_SECONDS] * 4
    assert told(lines) == [("still waiting", "checkpoint", 60.0), ("still waiting", "checkpoint", 120.0)]


# -- /healthz ---------------------------------------------------------------------------------------------------------


def test_a_process_without_progress_is_red_and_the_view_still_reads_what_it_waits_for(clock: Clock) -> None:
    metrics = LearnerMetrics(clock=clock, stall_seconds=600.0)
    server = serve(metrics, HOST, free_port(), metrics.health)
    try:
        metrics.starting("model")
        clock.now += 500
        metrics.starting("task card")
        clock.now += 500
        assert get(server.port, "/healthz")[0] == 200, "each phase of the start has its own time"
        metrics.waiting("no live generator", "t0000000003")
        clock.now += 101
        status, kind, body = get(server.port, "/healthz")
        assert (status, kind) == (503, "application/json")
        assert json.loads(body) == {
            "role": "learner",
            "healthy": False,
            "ready": False,
            "waiting": {"reason": "no live generator", "detail": "t0000000003", "since_seconds": 101.0},
            "last_progress_seconds": 601.0,
        }
        answer = ask(HOST, server.port, clock=lambda: 5000.0)
        assert answer is not None
        assert not answer.healthy
        assert (answer.reason, answer.since, answer.progressed) == ("no live generator", 4899.0, 4399.0)
        assert answer.figure("learner_waiting_since_seconds") == 101.0
        metrics.progress()
        assert get(server.port, "/healthz")[0] == 200
    finally:
        server.stop()


def test_zero_turns_it_off(clock: Clock) -> None:
    metrics = GeneratorMetrics(clock=clock)
    clock.now += 1e9
    assert metrics.health()["healthy"] is True


def test_waits_and_progress_are_counted_when_somebody_asks(clock: Clock) -> None:
    """A process that hangs sets no gauge: the figures must grow without it."""
    metrics = GeneratorMetrics(clock=clock)

    def shown(name: str) -> float:
        return value({family.name: family for family in metrics.registry.collect()}, f"headrace_generator_{name}")

    metrics.waiting("version", "3")
    metrics.progress()
    clock.now += 7
    assert (shown("waiting_since_seconds"), shown("last_progress_seconds")) == (7.0, 7.0)
    metrics.waiting("none")
    clock.now += 5
    assert (shown("waiting_since_seconds"), shown("last_progress_seconds")) == (0.0, 12.0)
