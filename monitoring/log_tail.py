"""The log of a process as it grows: its last lines first, then what is new.

Invariant: a line is told once, when its newline is there, and is never longer than LONGEST; memory is bounded whatever
is written. A file that was cut off or replaced is read from its beginning. Refuses to know what a line says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LONGEST = 16_384  # bytes of a line
WINDOW = 1 << 20  # in which the last lines are looked for; also what is read at once
LEFT_OUT = b" [...]"


class LogTail:
    """`path`, which may not be there yet, from its last `lines` lines on, or from its beginning (None)."""

    def __init__(self, path: Path, lines: int | None = None) -> None:
        self._path, self._lines = path, lines
        self._file: BinaryIO | None = None
        self._line, self._too_long = b"", False

    def read(self) -> Iterator[bytes]:
        """The lines that are new, without their newlines."""
        if self._file is None and not self._open():
            return
        yield from self._new()
        if self._replaced():  # whoever wrote to the old one may still have done so up to now
            yield from self.rest()
            if self._open():
                yield from self._new()

    def rest(self) -> Iterator[bytes]:
        """A line that has no end, once nobody will write it any more."""
        if self._line:
            yield self._told()
        self.close()

    def close(self) -> None:
        """Look no further."""
        if self._file is not None:
            self._file.close()
        self._file, self._line, self._too_long, self._lines = None, b"", False, None

    def _open(self) -> bool:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            return False
        if self._lines is not None:
            _seek_last(self._file, self._lines)
        return True

    def _replaced(self) -> bool:
        assert self._file is not None
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _new(self) -> Iterator[bytes]:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._line, self._too_long = b"", False
        while data := self._file.read(WINDOW):
            *ended, last = data.split(b"\n")
            for piece in ended:
                self._add(piece)
                yield self._told()
            self._add(last)

    def _add(self, piece: bytes) -> None:
        self._too_long = self._too_long or len(self._line) + len(piece) > LONGEST
        self._line = (self._line + piece)[:LONGEST]

    def _told(self) -> bytes:
        line = self._line + (LEFT_OUT if self._too_long else b"")
        self._line, self._too_long = b"", False
        return line


def _seek_last(file: BinaryIO, lines: int) -> None:
    """Go to where the last `lines` whole lines begin; not further back than WINDOW."""
    size = file.seek(0, os.SEEK_END)
    begin = max(0, size - WINDOW)
    file.seek(begin)
    pieces = file.read(size - begin).split(b"\n")
    if begin:
        pieces = pieces[1:] or [b""]  # of which who knows the beginning
    kept = pieces[-(lines + 1) :]
    file.seek(size - sum(len(piece) + 1 for piece in kept) + 1)
