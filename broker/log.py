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
    for key, value in event.items():
        if isinstance(value, bytes | str) and len(value) > LONGEST:
            event[key] = f"{value[:LONGEST]!r}… ({len(value)})"
    return event


def setup(role: str) -> None:
    """Configure structlog for this process; `HEADRACE_LOG=json|console` overrides the choice by terminal."""
    wanted = os.environ.get("HEADRACE_LOG", "console" if sys.stderr.isatty() else "json")
    renderer: Any = structlog.dev.ConsoleRenderer() if wanted == "console" else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            _shorten,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(role=role)
