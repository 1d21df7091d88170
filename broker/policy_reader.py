"""The reader's side of policy versions: which is the newest, and holding on to one while it is loaded.

Invariant: a version that is leased is not taken away before the lease ends. Refuses to know where versions lie.

Readers: first `lease`, then `open`, then load, then `release`. In that order a version cannot be pulled away: whoever
prunes marks what will go in the same server-side step in which it looks at the leases, and `lease` refuses the marked.
"""

from __future__ import annotations

import contextlib
import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from broker.keys import Keys
from broker.scripts import LEASE

POLL_SECONDS = 1.0  # what a lost wake-up costs a waiting reader


class PolicyReader(ABC):
    """What a generator needs. `clock` gives seconds since the epoch; all hosts' should agree to a few seconds."""

    def __init__(
        self, client: redis.Redis, keys: Keys, lease_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis, self._keys, self._clock = client, keys, clock
        self.lease_seconds = lease_seconds
        self._lease = client.register_script(LEASE)

    @abstractmethod
    def open(self, version: int) -> Path:
        """The folder of `version`, every byte of it checked. Raises `FileNotFoundError`, or `Malformed` if damaged."""

    def loaded(self, version: int) -> None:  # noqa: B027  (nothing to do where the files are not the reader's own)
        """The reader uses `version`, and the files of no other from now on."""

    def close(self) -> None:  # noqa: B027
        """The reader opens nothing any more."""

    def newest(self) -> int | None:
        """The version that the pointer names; None before the first."""
        value: Any = self._redis.get(self._keys.policy)
        return None if value is None else int(value)

    def wait(self, held: int, timeout: float) -> int | None:
        """The version that the pointer names, as soon as that is another than `held`; None after `timeout` seconds.

        It is an older one where the run was taken back: then `held` is of no history of it.
        """
        deadline = time.monotonic() + timeout
        while True:
            newest, left = self.newest(), deadline - time.monotonic()
            if newest is not None and newest != held:
                return newest
            if left <= 0:
                return None
            # Whatever wakes us, the pointer decides; a broken connection wakes us, too.
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                self._doze(held, deadline)

    def _doze(self, held: int, deadline: float) -> None:
        client: Any = self._redis  # its pubsub is untyped
        with client.pubsub(ignore_subscribe_messages=True) as messages:
            messages.subscribe(self._keys.policy)
            while self.newest() in (None, held):
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                messages.get_message(timeout=min(left, POLL_SECONDS))

    def lease(self, reader: str, version: int) -> None:
        """Keep `version` for `lease_seconds` more; replaces the reader's earlier lease. Comes before `open`.

        Raises `FileNotFoundError` if the version is being pruned: take the newest instead.
        """
        now = self._clock()
        if not self._lease([self._keys.policy_leases], [reader, version, now, now + self.lease_seconds]):
            raise FileNotFoundError(errno.ENOENT, f"policy version {version} is being pruned")

    def release(self, reader: str) -> None:
        """The reader needs no version any longer."""
        self._redis.hdel(self._keys.policy_leases, reader)
