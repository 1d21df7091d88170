"""A folder for what a process needs on disk while it lives.

Invariant: it ends with its process; that of one that was killed is removed by the next process that makes one of the
same name. Refuses to know what lies in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path

LOCK = ".lock"


class Scratch:
    """One folder below the system's temporary directory (TMPDIR)."""

    def __init__(self, name: str) -> None:
        """Make it, and remove those of this `name` whose processes are gone."""
        above = Path(tempfile.gettempdir())
        for other in above.glob(f"{name}-*"):
            _remove_if_left(other)
        begun = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=above))
        self._lock = (begun / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = begun.rename(above / begun.name.removeprefix("."))  # locked before anybody can find it

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)  # what stays is removed by the next one
        self._lock.close()


def _remove_if_left(folder: Path) -> None:
    # An OSError: it is held by a process that lives, or somebody else's.
    with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
