"""The audit log of a run, a process' end of it: notes on groups go to a stream of bounded length.

Invariant: whoever writes a note waits for nothing and is never stopped by one. It is made, encoded and sent on a thread
of the log's own, outside of every transaction and without a second attempt; what cannot be made or sent is counted, and
said once. Refuses to know what is in a note, and who reads it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog

from broker.audit import Note, encode_note
from broker.connection import connect
from broker.keys import Keys
from broker.settings import BrokerSettings

Make = Callable[[], Note]

WAITING = 256  # notes that wait to be sent, at most: Redis is away, or slower than we are
AT_ONCE = 32  # notes in one exchange with Redis
CLOSE_SECONDS = 3.0

log = structlog.get_logger(__name__)


def _nobody(_: int) -> None:
    """Nobody needs to know."""


class AuditLog:
    """Of one process; its notes are in the order in which they were written."""

    def __init__(
        self,
        client: redis.Redis | None,
        keys: Keys,
        entries: int,
        size: int,
        lost: Callable[[int], object] = _nobody,
    ) -> None:
        """At most about `entries` notes of `size` bytes; no client, no log. `lost` is told how many notes were."""
        self._client, self._key, self._entries, self._size = client, keys.audit, entries, size
        self._told, self.lost = lost, 0
        self._notes: queue.Queue[tuple[str, Make] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, settings: BrokerSettings, url: str, keys: Keys, lost: Callable[[int], object] = _nobody) -> AuditLog:
        """As the recipe has it, on a connection of its own that has no patience."""
        client = connect(settings, url) if settings.audit_entries else None
        return cls(client, keys, settings.audit_entries, settings.audit_bytes, lost)

    @classmethod
    def off(cls) -> AuditLog:
        """One that keeps nothing."""
        return cls(None, Keys("none"), 0, 0)

    @property
    def on(self) -> bool:
        """Notes are kept."""
        return self._client is not None

    def write(self, ticket_id: str, make: Make) -> None:
        """A note on that ticket's group, which `make` makes, later and on another thread: of what does not change."""
        if self._client is None:
            return
        if self._thread is None:  # not before there is something to do: engines fork
            self._thread = threading.Thread(target=self._work, args=(self._client,), name="audit", daemon=True)
            self._thread.start()
        try:
            self._notes.put_nowait((ticket_id, make))
        except queue.Full:
            self._lose(1, "Redis is slower than the run")

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what waits, for so long and no longer."""
        if self._thread is not None and self._thread.is_alive():
            try:
                self._notes.put(None, timeout=seconds)
                self._thread.join(seconds)
            except queue.Full:
                self._lose(self._notes.qsize(), "Redis does not answer")
        self._thread = None

    def _work(self, client: redis.Redis) -> None:
        ended = False
        while not ended:
            batch = [self._notes.get()]
            while len(batch) < AT_ONCE and batch[-1] is not None and not self._notes.empty():
                batch.append(self._notes.get())
            ended = batch[-1] is None
            self._send(client, [entry for note in batch if note is not None and (entry := self._encoded(*note))])
        client.close()

    def _encoded(self, ticket_id: str, make: Make) -> dict[str, Any] | None:
        try:
            return {"ticket_id": ticket_id, "payload": encode_note(make(), self._size)}
        except Exception as error:  # a note is not worth a run, whatever is wrong with it
            self._lose(1, f"{type(error).__name__}: {error}")
            return None

    def _send(self, client: redis.Redis, entries: Sequence[dict[Any, Any]]) -> None:
        if not entries:
            return
        try:
            with client.pipeline(transaction=False) as pipe:
                for fields in entries:
                    pipe.xadd(self._key, fields, maxlen=self._entries, approximate=True)
                refused = [reply for reply in pipe.execute(raise_on_error=False) if isinstance(reply, Exception)]
        except redis.RedisError as error:
            self._lose(len(entries), str(error))
        else:
            if refused:
                self._lose(len(refused), str(refused[0]))

    def _lose(self, count: int, why: str) -> None:
        if not self.lost:
            log.warning("the audit log has lost notes, which costs the run nothing", because=why[:200])
        self.lost += count
        self._told(count)
