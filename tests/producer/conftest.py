"""What tests of whole generators may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.prepare import prepare


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a tokenizer."""
    return prepare("random:llama-tiny", tmp_path_factory.mktemp("models"))
