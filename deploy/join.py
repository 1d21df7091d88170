"""Joining a run from anywhere: a generator's recipe from Redis, where the run's learner has put it.

Invariant: what is joined is the learner's recipe, but for what is this machine's own: how it reaches Redis, where the
model is, and what flags and environment say. Refuses to know what a generator does.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from broker.connection import connect, require
from broker.errors import Refused
from broker.joining import wait_for_recipe
from broker.keys import Keys
from broker.loading import compose
from broker.secret import write_secret
from broker.settings import BrokerSettings, redis_url
from deploy.recipe import Recipe

HERE = ("host", "learner_port", "generator_port", "exporter_port")  # of [monitoring]: where this machine serves
OURS = ("url", "password", "password_file", "tls_ca", "tls_cert", "tls_key")  # of [broker]: how this machine gets there
OFF = 0  # of a port
PREFIX = "headrace-joined-"


class _Name(BaseModel):
    name: str = ""
    model: str = ""


class _Way(BaseModel):
    """What this machine has to know by itself."""

    broker: BrokerSettings = BrokerSettings()
    run: _Name = _Name()


def joined(run: str, flags: list[str]) -> Recipe:
    """The recipe of `run` (else of what `run.name` says here), waited for. Raises `Refused` with one line."""
    way = compose(_Way, {}, "flags and environment", flags)
    name = run or way.run.name
    if not name:
        raise Refused("which run is to be joined was not said", "--join NAME, or HEADRACE_RUN__NAME")
    with connect(way.broker, redis_url(way.broker)) as client:
        require(client)
        document = wait_for_recipe(client, Keys(name))
    recipe = compose(Recipe, _portable(document), f"the recipe of run {name}", [*flags, "--run.name", name])
    if not way.run.model and not Path(recipe.run.model).is_dir():
        raise Refused(
            f"the model of run {name} is {recipe.run.model} where its learner is, and not here",
            "give its name or directory: --run.model, or HEADRACE_RUN__MODEL",
        )
    if recipe.policy.backend == "directory" and not recipe.policy_directory.is_dir():
        raise Refused(
            f"the weights of run {name} travel through the directory {recipe.policy_directory}, which is not here",
            "give where it is mounted as policy.directory; or have the learner use policy.backend = redis",
        )
    return recipe


def written(recipe: Recipe) -> Path:
    """As a file, for what this process is about to become; those of processes that are gone are removed."""
    folder = Path(tempfile.gettempdir())
    for other in folder.glob(f"{PREFIX}*.toml"):
        with contextlib.suppress(OSError, ValueError):  # somebody else's
            if not _lives(int(other.stem.removeprefix(PREFIX))):
                other.unlink()
    path = folder / f"{PREFIX}{os.getpid()}.toml"
    write_secret(path, recipe.toml())
    return path


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _portable(document: dict[str, Any]) -> dict[str, Any]:
    for section, ours in (("broker", OURS), ("monitoring", HERE)):
        theirs = document.get(section)
        if isinstance(theirs, dict):
            document[section] = {key: value for key, value in theirs.items() if key not in ours or value == OFF}
    return document
