"""Whether candidates can be locked up here (where not, tests that need it are skipped by name), and what they say."""

from __future__ import annotations

import functools

import psutil
import pytest

from producer.sandbox.box import Sandbox, Unavailable, require

SECONDS = 10.0


@functools.cache
def why_not() -> str:
    """'' where they can."""
    try:
        require()
    except Unavailable as error:
        return str(error)
    return ""


needs_lock = pytest.mark.skipif(bool(why_not()), reason=f"no candidate can be locked up here: {why_not()}")


def said(sandbox: Sandbox, code: str, *arguments: str, seconds: float = SECONDS) -> list[str]:
    return sandbox.run(code, "f", arguments or ["()"], seconds)


def family() -> set[int]:
    """Every process below us that is alive or not reaped."""
    return {child.pid for child in psutil.Process().children(recursive=True)}
