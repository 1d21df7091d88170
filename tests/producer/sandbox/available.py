"""Whether candidates can be locked up on this machine; where they cannot, tests that need it are skipped by name."""

from __future__ import annotations

import functools

import pytest

from producer.sandbox.box import Unavailable, require


@functools.cache
def why_not() -> str:
    """'' where they can."""
    try:
        require()
    except Unavailable as error:
        return str(error)
    return ""


needs_lock = pytest.mark.skipif(bool(why_not()), reason=f"no candidate can be locked up here: {why_not()}")
