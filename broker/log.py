"""Logging of every process: readable on a terminal, one JSON object a line elsewhere.

Invariant: no binary payload reaches a log line whole. Refuses to know what is worth logging.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

LONGEST = 500


def _shorten(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Cuts what a value looks like, whatever it is; of an exception's many lines, each."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(_cut(line, line) for line in str(value).split("\n"))
        elif isinstance(value, bytes | str):
            event[key] = _cut(value, value)
        elif not isinstance(value, int | float | None):
            event[key] = _cut(repr(value), value)
    return event


def _cut(shown: str | bytes, value: Any) -> Any:
    return f"{shown[:LONGEST]!r}… ({len(shown)})" if len(shown) > LONGEST else value


def setup(role: str) -> None:
    """Configure structlog for this process; `HEADRACE_LOG=json|console` overrides the choice by terminal."""
    wanted = os.environ.get("HEADRACE_LOG", "console" if sys.stderr.isatty() else "json")
    renderer: Any = structlog.dev.ConsoleRenderer() if wanted == "console" else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            _shorten,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(role=role)
