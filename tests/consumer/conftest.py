"""What every test of the learner may ask for: a desk over an empty Redis. And one thread for torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_library
import torch

from broker.keys import Keys
from tests.consumer.desk import Desk


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing work, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def desk(redis: redis_library.Redis, keys: Keys, tmp_path: Path) -> Desk:
    """Streams, books and PolicyStore of one run."""
    return Desk(redis, keys, tmp_path)
