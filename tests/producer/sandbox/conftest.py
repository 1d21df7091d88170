"""A sandbox for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from producer.sandbox.box import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox()
    yield made
    made.close()
