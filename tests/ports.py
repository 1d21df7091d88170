"""Ports of this machine that nobody listens on."""

from __future__ import annotations

import random
import socket

LEAST, MOST = 10_000, 32_000  # below those that the system gives to whoever connects to somewhere meanwhile

_chance = random.SystemRandom()


def free_port() -> int:
    """One that was free a moment ago."""
    while True:
        port = _chance.randrange(LEAST, MOST)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
