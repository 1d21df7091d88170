"""A file of lines that grows: what has been written since the last look.

Invariant: a line counts once its newline is there; only new bytes are looked at. Refuses to know what a line says.
"""

from __future__ import annotations

from pathlib import Path


class Tail:
    """The lines of `path`, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.begun_anew = False  # the file was shorter at the last look than before: these lines are its first

    def read(self) -> list[bytes]:
        """The lines that are new, in order."""
        self.begun_anew = False
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset, self.begun_anew = 0, True
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return data.splitlines()
