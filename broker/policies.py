"""Policy versions by the backend that the recipe names: what the learner writes to and what a generator reads from.

Invariant: whichever it is, a version that the pointer names can be opened until it is pruned, and readers that lease
never see half of one. Refuses to know files and chunks (policy, freight).

With `redis` the learner's versions lie in its own directory as they do with `directory`, and Redis holds copies: what
it loses is shipped again from there.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis
import structlog

from broker.errors import Malformed
from broker.fence import Fence
from broker.fetcher import Fetcher
from broker.keys import Keys
from broker.manifest import Stored, read, verify
from broker.policy import PolicyStore
from broker.policy_reader import PolicyReader
from broker.scratch import Scratch
from broker.settings import RecipeBase
from broker.shipper import Shipper

log = structlog.get_logger(__name__)


def writer(recipe: RecipeBase, client: redis.Redis, keys: Keys, fence: Fence) -> PolicyStore:
    """The learner's, who has taken over by `fence`."""
    of, directory = recipe.policy, recipe.policy_directory
    if of.backend == "redis":
        return ShippingStore(client, keys, directory, of.keep, of.lease_seconds, fence, of.spacing)
    return PolicyStore(client, keys, directory, of.keep, of.lease_seconds)


def reader(recipe: RecipeBase, client: redis.Redis, keys: Keys) -> PolicyReader:
    """A generator's; `close` it in the end."""
    of = recipe.policy
    if of.backend == "redis":
        return FetchingReader(client, keys, of.lease_seconds)
    return PolicyStore(client, keys, recipe.policy_directory, of.keep, of.lease_seconds)


class ShippingStore(PolicyStore):
    """The learner's directory, and copies in Redis.

    Redis' memory is bounded: of versions that are older than the newest `keep`, `keep` stay because somebody leases
    them. Those are the oldest, whose readers are the furthest: so there is always one that gets through.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        directory: Path,
        keep: int,
        lease_seconds: float,
        fence: Fence,
        anchor_every: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, keys, directory, keep, lease_seconds, clock)
        self._freight, self._clean = Shipper(client, keys, fence, anchor_every), False

    def write(self, version: int, fill: Callable[[Path], None], *, replace: bool = False) -> Path:
        """As its base class does; returns once Redis has it, too. Raises `Behind` where Redis has lost a part."""
        if not self._clean:
            self._freight.sweep()
            self._clean = True
        folder = super().write(version, fill, replace=replace)
        self._ship(version)
        return folder

    def point(self, pipe: object, version: int) -> None:
        """As its base class does. What Redis has forgotten of our versions is there again before the pointer moves."""
        there = self._freight.available()
        for own in self.versions():
            if own <= version and own not in there:
                self._ship_again(own, needed=own == version)
        super().point(pipe, version)

    def _ship_again(self, version: int, *, needed: bool) -> None:
        try:
            self.open(version)
        except Malformed as damage:
            if needed:
                raise
            log.warning("an older policy version is damaged and not shipped again", version=version, damage=str(damage))

    def open(self, version: int) -> Path:
        """As its base class does; Redis has it then."""
        folder = self._checked(version)
        self._ship(version)
        return folder

    def _ship(self, version: int) -> None:
        self._freight.ship(self._stored(version), self._earlier(version))

    def _earlier(self, version: int) -> Stored | None:
        own = max((own for own in self.versions() if own < version), default=None)
        try:
            return None if own is None else self._stored(own)
        except Malformed as damage:
            log.warning("an older policy version is damaged", version=own, damage=str(damage))
            return None

    def _stored(self, version: int) -> Stored:
        return Stored(self.path(version), read(self.path(version), self._keys.run, version))

    def _unread(self, candidates: list[int]) -> list[int]:
        unread = super()._unread(candidates)
        leased = [version for version in candidates if version not in unread]
        return sorted([*unread, *leased[self.keep :]])

    def _remove(self, versions: list[int]) -> None:
        super()._remove(versions)
        self._freight.keep_only(set(self.versions()))


class FetchingReader(PolicyReader):
    """A generator's copies, in a folder that ends with the process: what it has loaded, and what it opened last."""

    def __init__(
        self, client: redis.Redis, keys: Keys, lease_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(client, keys, lease_seconds, clock)
        self._freight, self._scratch = Fetcher(client, keys), Scratch(f"headrace-{keys.run}")
        self._loaded: Stored | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._reader = ""  # who leases

    def open(self, version: int) -> Path:
        """Fetch `version`, unless that was done, renewing the lease. Raises `InterruptedError` where it is closed."""
        folder = self._folder(version)
        with self._lock:
            if self._closed.is_set():
                raise InterruptedError("this reader is closed")
            if not self._holds(folder, version):
                self._keep_loaded()
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                held = self._loaded if self._loaded is not None and self._loaded.folder != folder else None
                self._freight.fetch(version, folder, self._carry_on(version), held)
        return folder

    def lease(self, reader: str, version: int) -> None:
        """As its base class does."""
        super().lease(reader, version)
        self._reader = reader

    def _carry_on(self, version: int) -> Callable[[], None]:
        due = self._clock() + self.lease_seconds / 3

        def carry_on() -> None:
            nonlocal due
            if self._closed.is_set():
                raise InterruptedError("this reader is closed")
            if self._reader and self._clock() >= due:
                self.lease(self._reader, version)
                due = self._clock() + self.lease_seconds / 3

        return carry_on

    def loaded(self, version: int) -> None:
        """What was loaded before is removed."""
        folder = self._folder(version)
        self._loaded = Stored(folder, read(folder, self._keys.run, version))
        self._keep_loaded()

    def close(self) -> None:
        """Remove what was fetched; what is being fetched ends."""
        self._closed.set()
        with self._lock:
            self._scratch.close()

    def _folder(self, version: int) -> Path:
        return self._scratch.path / f"v{version:08d}"

    def _keep_loaded(self) -> None:
        for other in self._scratch.path.glob("v*"):
            if self._loaded is None or other != self._loaded.folder:
                shutil.rmtree(other)

    def _holds(self, folder: Path, version: int) -> bool:
        try:
            verify(folder, read(folder, self._keys.run, version))
        except (FileNotFoundError, Malformed):  # not yet, or half of it
            return False
        return True
