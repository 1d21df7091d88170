"""Asking again and again on a daemon thread, for views that never wait for an answer.

Invariant: rounds do not overlap, and the pause comes after each. Refuses to know who is asked, and what.
"""

from __future__ import annotations

import threading
from typing import Self


class Rounds:
    """One thread, called `title`, and `pause` seconds after each round."""

    title: str
    pause: float

    def __init__(self) -> None:
        self._stopping = threading.Event()

    def start(self) -> Self:
        """Begin to ask."""
        threading.Thread(target=self._loop, name=self.title, daemon=True).start()
        return self

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._round()
            self._stopping.wait(self.pause)

    def _round(self) -> None:
        """Ask once."""
        raise NotImplementedError
