"""What several system tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.teaching import taught_to_add


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory that answers a sum with some number, so that rewards differ within a group."""
    return taught_to_add(tmp_path_factory.mktemp("models"))
