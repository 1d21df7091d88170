"""What is made of answers that no Prometheus gives; what real ones say is asked wherever one is started."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.errors import Refused
from monitoring.prometheus_api import Prometheus
from tests.monitoring.strangers import saying

QUESTIONS: dict[str, Callable[[Prometheus], object]] = {
    "now": lambda asked: asked.now("up"),
    "range": lambda asked: asked.range("up", 0, 10, 1),
    "alert_rules": lambda asked: asked.alert_rules(),
    "label_values": lambda asked: asked.label_values("run", "up"),
}
STRANGE: list[Any] = [
    None,
    {"result": []},
    {"resultType": "vector", "result": [{"metric": {}, "value": [1]}]},
    {"resultType": "matrix", "result": [{"metric": {"a": 1}, "values": [[1, "x"]]}]},
    {"groups": [{"rules": [{"query": "up"}]}]},
    {"groups": 7},
    [1, [2]],
]


@contextmanager
def answering(body: bytes) -> Iterator[Prometheus]:
    """A server that says this, whatever it is asked."""
    with saying(body) as port:
        yield Prometheus(f"http://127.0.0.1:{port}", timeout=10)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("data", STRANGE, ids=range(len(STRANGE)))
def test_an_answer_of_another_shape_is_refused(question: str, data: Any) -> None:
    body = json.dumps({"status": "success", "data": data}).encode()
    with answering(body) as asked, pytest.raises(Refused, match="answers as no Prometheus does"):
        QUESTIONS[question](asked)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"\xff", b"7"])
def test_what_is_no_answer_at_all_is_refused(body: bytes) -> None:
    with answering(body) as asked, pytest.raises(Refused, match="no Prometheus answers"):
        asked.now("up")


def test_prometheus_own_words_come_with_its_refusal() -> None:
    body = json.dumps({"status": "error", "error": "parse error at char 3"}).encode()
    with answering(body) as asked, pytest.raises(Refused, match=r"refuses up \+: parse error at char 3"):
        asked.now("up +")


def test_numbers_that_are_none_come_through() -> None:
    samples = [{"metric": {"a": "b"}, "value": [1.5, value]} for value in ("NaN", "+Inf", "-Inf", "2")]
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": samples}}).encode()
    with answering(body) as asked:
        nan, *others = [series.values[0] for series in asked.now("up")]
    assert math.isnan(nan)
    assert others == [math.inf, -math.inf, 2.0]
