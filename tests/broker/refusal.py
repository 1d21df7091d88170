"""What a server is refused for."""

from __future__ import annotations

import pytest
import redis

from broker.connection import require
from broker.errors import Refused


def refusal(client: redis.Redis) -> str:
    """The one line."""
    with client, pytest.raises(Refused) as caught:
        require(client)
    assert "\n" not in str(caught.value)
    return str(caught.value)
