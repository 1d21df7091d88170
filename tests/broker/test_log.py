"""Log lines: JSON where nobody looks, readable on a terminal, and no payload whole on any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from broker.log import LONGEST, setup

PAYLOAD = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging belongs to the process: put back what other tests expect."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out, err = capsys.readouterr()
    assert out == "", "standard output is for results"
    (line,) = err.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


def test_away_from_a_terminal_every_event_is_a_json_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup("generator")
    structlog.get_logger("x").warning("two\nlines", ticket="t1", seconds=0.5)
    line = said(capsys)
    assert line.pop("timestamp")[10] == "T"
    assert line == {"event": "two\nlines", "level": "warning", "role": "generator", "ticket": "t1", "seconds": 0.5}


def test_the_form_can_be_chosen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOG", "console")
    setup("learner")
    structlog.get_logger("x").info("step", step=3)
    line = capsys.readouterr().err
    assert "step" in line
    assert not line.startswith("{")


def test_debugging_is_not_for_users(capsys: pytest.CaptureFixture[str]) -> None:
    setup("learner")
    structlog.get_logger("x").debug("detail")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["x" * 10_000, PAYLOAD])
def test_a_long_value_is_cut_and_its_length_told(capsys: pytest.CaptureFixture[str], value: str | bytes) -> None:
    setup("learner")
    structlog.get_logger("x").error("failed", error=value, short="as it is")
    line = said(capsys)
    assert len(line["error"]) < 4 * LONGEST + 20, "an escaped byte takes four characters"
    assert line["error"].endswith(f"({len(value)})")
    assert line["short"] == "as it is"


def test_the_text_of_an_exception_is_cut_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed pipeline puts the payload into its exception, and that into the log."""
    setup("learner")
    try:
        raise ValueError(f"Command # 1 (XADD {PAYLOAD!r}) of pipeline caused error")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    assert len(json.dumps(said(capsys))) < 10 * LONGEST


@pytest.mark.parametrize("value", [[PAYLOAD], {"payload": PAYLOAD}, (1, PAYLOAD), ValueError(PAYLOAD)])
def test_what_is_inside_another_value_is_cut_as_well(capsys: pytest.CaptureFixture[str], value: Any) -> None:
    setup("learner")
    structlog.get_logger("x").error("failed", what=value)
    assert len(json.dumps(said(capsys))) < 10 * LONGEST
