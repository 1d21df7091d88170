"""Processes are asked for their figures over real sockets, by production's own server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from monitoring.endpoints import Endpoint, Endpoints, Rate, ask
from monitoring.metrics import GeneratorMetrics, LearnerMetrics
from monitoring.server import Server, serve
from tests.ports import free_port
from tests.system.pipeline import wait_until

HOST = "127.0.0.1"


@contextmanager
def served(metrics: LearnerMetrics | GeneratorMetrics, port: int = 0) -> Iterator[Server]:
    server = serve(metrics, HOST, port or free_port(), metrics.health)
    try:
        yield server
    finally:
        server.stop()


def test_a_process_says_what_it_waits_for_and_since_when() -> None:
    metrics = LearnerMetrics()
    metrics.waiting("ticket", "t00000012")
    metrics.step.set(7)
    with served(metrics) as server:
        answer = ask(HOST, server.port, clock=lambda: 1000.0)
    assert answer is not None
    assert (answer.at, answer.reason, answer.detail) == (1000.0, "ticket", "t00000012")
    assert answer.since is not None
    assert answer.since <= 1000.0
    assert answer.figure("learner_step") == 7
    assert answer.figure("learner_no_such_figure") == 0


def test_a_counter_with_labels_is_their_sum() -> None:
    metrics = GeneratorMetrics()
    metrics.tokens.labels(kind="train").inc(100)
    metrics.tokens.labels(kind="eval").inc(20)
    with served(metrics) as server:
        answer = ask(HOST, server.port)
    assert answer is not None
    assert answer.figure("generator_tokens_total") == 120


def test_nobody_and_a_stranger_give_no_answer() -> None:
    assert ask(HOST, free_port()) is None

    class Stranger(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer((HOST, 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(HOST, server.server_port) is None
        server.shutdown()
        thread.join()


def test_a_process_that_accepts_and_says_nothing_gives_no_answer() -> None:
    with socket.create_server((HOST, 0)) as server:
        assert ask(HOST, server.getsockname()[1]) is None


def test_a_rate_is_taken_over_the_last_minute() -> None:
    rate = Rate()
    rate.add(0, 0)
    assert rate.per_second is None
    rate.add(10, 100)
    assert rate.per_second == pytest.approx(10)
    for at in range(20, 200, 10):
        rate.add(at, 100 + (at - 10) * 2)  # slower from now on: what lies more than a minute back is forgotten
    assert rate.per_second == pytest.approx(2)
    assert len(rate.seen) <= 8


def test_a_counter_that_begins_anew_gives_no_negative_rate() -> None:
    rate = Rate()
    rate.add(0, 500)
    rate.add(10, 1000)
    rate.add(20, 30)  # the process was restarted
    assert rate.per_second is None
    rate.add(30, 80)
    assert rate.per_second == pytest.approx(5)


def test_all_are_asked_in_rounds_and_an_endpoint_that_is_off_is_left_out() -> None:
    learner, generator = LearnerMetrics(), GeneratorMetrics()
    with served(learner) as one, served(generator) as two:
        up, off = [Endpoint(HOST, one.port), Endpoint(HOST, two.port)], Endpoint(HOST, 0)
        endpoints = Endpoints([*up, off]).start()
        try:
            wait_until(lambda: endpoints.rounds >= 1, "everybody was asked", 30)
        finally:
            endpoints.stop()
    assert all(endpoint.answer is not None for endpoint in up)
    assert off.answer is None
