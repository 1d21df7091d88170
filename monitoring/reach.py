"""The Redis of a run for whoever looks: the one that answers, else the data that a finished run has left behind.

Invariant: a server is started on a run's data only if nobody works on its folder, on loopback behind a password that
nobody knows, and it ends with the look. Refuses to know what is looked for.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from broker.connection import connect, require
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.keys import Keys
from broker.run_folder import RunFolder
from broker.settings import BrokerSettings, redis_url
from monitoring.recipe import ViewRecipe, where


@contextmanager
def reach(path: Path, recipe: ViewRecipe) -> Iterator[tuple[redis.Redis, Keys]]:
    """A client of the run of the recipe at `path`, and the run's keys. Raises `Refused`."""
    name, broker = where(path, recipe)
    keys, folder = Keys(name), RunFolder(recipe.run.directory / name)
    with connect(broker, redis_url(broker)) as client:
        try:
            require(client)
        except Refused:
            if recipe.broker.url is not None and path.resolve() != folder.recipe.resolve():
                raise  # this server was asked for, and no other
            if folder.launcher() not in (None, os.getppid()) or not folder.redis.is_dir():
                raise  # a launcher that has started us to report has stopped its server before
        else:
            yield client, keys
            return
    password = secrets.token_hex(16)
    with (
        EmbeddedServer(folder.redis, password=password) as server,
        connect(BrokerSettings(password=password), server.url) as client,
    ):
        yield client, keys
