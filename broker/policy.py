"""Policy versions on a shared directory: how weights get from the learner to the generators.

Invariant: a folder `v00000012` is complete, flushed and never changes its content afterwards; the pointer in Redis
names only such a folder. Refuses to know what a weight is: the learner fills the files and an engine loads them.

A version appears by one rename, so a crash leaves all of it or a leftover. One learner writes; at its first `write` it
sweeps away what a predecessor had begun, whose upload then fails instead of appearing later.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import structlog

from broker.errors import Fenced, Malformed, Refused
from broker.files import flush, replace_text, room_for
from broker.keys import Keys
from broker.manifest import NAME as MANIFEST_NAME
from broker.manifest import Manifest, read, seal, verify
from broker.points import reached
from broker.policy_reader import PolicyReader
from broker.scripts import MARK

OWNER = ".run"  # file with the name of the run whose versions these are
USED = ".used"  # file with the highest number that the pointer was ever moved to, or was about to be
PRUNING_SECONDS = 60.0  # after which the mark of a pruner that died lapses

log = structlog.get_logger(__name__)


class PolicyStore(PolicyReader):
    """The directory backend, which learner and generators share."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        directory: Path,
        keep: int,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, keys, lease_seconds, clock)
        self.directory, self.keep = directory, keep
        self._mark = client.register_script(MARK)
        self._swept = False

    def write(self, version: int, fill: Callable[[Path], None], *, replace: bool = False) -> Path:
        """Let `fill` write the files of `version` into a fresh folder and make it appear, complete, under its name.

        The same content again is accepted. Other content under a used number raises `Refused`, unless the earlier
        upload is damaged, or `replace` corrects one that the pointer has never reached; so does a directory of another
        run. A full disk raises `OSError` naming the directory; `Fenced` says that another learner has begun to write.
        Blocks until everything is on disk.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._own()
        self._sweep()
        folder = self._aside("writing", version)
        folder.mkdir()
        try:
            with room_for(f"policy version {version}", self.directory):
                fill(folder)
                reached("policy.filled")
                if not self._is_there(seal(folder, self._keys.run, version), replace):
                    folder.rename(self.path(version))
        except Exception as error:
            if not folder.is_dir():
                raise Fenced("another learner has taken over this run and swept away this upload") from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # renamed away if all went well; what stays is swept next time
        flush(self.directory)
        return self.path(version)

    def point(self, pipe: Any, version: int) -> None:
        """Add to a MULTI: `version` is the newest from now on. Raises `FileNotFoundError` if it was never written."""
        if not (self.path(version) / MANIFEST_NAME).is_file():
            raise FileNotFoundError(errno.ENOENT, f"policy version {version} is not complete", str(self.path(version)))
        if version > self.used():
            replace_text(self.directory / USED, str(version))
            reached("policy.number-used")
        pipe.set(self._keys.policy, version)
        pipe.publish(self._keys.policy, version)

    def used(self) -> int:
        """The highest number that generators may have seen, whatever Redis has forgotten; -1 before the first."""
        try:
            return int((self.directory / USED).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return -1

    def open(self, version: int) -> Path:
        """The folder of `version`, every byte of it checked. Raises `FileNotFoundError`, or `Malformed` if damaged."""
        return self._checked(version)

    def _checked(self, version: int) -> Path:
        folder = self.path(version)
        verify(folder, read(folder, self._keys.run, version))
        return folder

    def prune(self, protected: set[int] | frozenset[int] = frozenset()) -> list[int]:
        """Remove what nobody needs; returns those versions.

        Stays: the newest `keep` up to the pointer, everything above the pointer, what is leased, what is `protected`.
        """
        newest = self.newest()
        published = [v for v in self.versions() if newest is not None and v <= newest]
        candidates = [v for v in published[: -self.keep] if v not in protected]
        self._sweep_trash()
        gone = self._unread(candidates) if candidates else []
        self._remove(gone)
        if gone:
            self._redis.hdel(self._keys.policy_leases, *[f"!prune:{version}" for version in gone])
        self._sweep_trash()
        return gone

    def _unread(self, candidates: list[int]) -> list[int]:
        """Those that nobody leases; from now on nobody can."""
        now = self._clock()
        marked: Any = self._mark([self._keys.policy_leases], [now, now + PRUNING_SECONDS, *candidates])
        return list(marked)

    def _remove(self, versions: list[int]) -> None:
        """Each goes whole, so that nobody sees half a version; what is left of it is swept."""
        for version in versions:
            aside = self._aside("trash", version)
            reached("policy.pruning")
            self.path(version).rename(aside)

    def versions(self) -> list[int]:
        """Every version on disk, oldest first, pointed at or not."""
        if not self.directory.is_dir():
            return []
        found = (re.fullmatch(r"v(\d{8,})", path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, version: int) -> Path:
        """Where `version` is, if it is."""
        return self.directory / f"v{version:08d}"

    def _aside(self, purpose: str, version: int) -> Path:
        return self.directory / f".{purpose}-{version}-{uuid.uuid4().hex[:8]}"

    def _own(self) -> None:
        """Two runs in one directory would take each other's numbers for their own."""
        owner = self.directory / OWNER
        name = owner.read_text(encoding="utf-8") if owner.exists() else ""
        if not name:
            owner.write_text(self._keys.run, encoding="utf-8")
        elif name != self._keys.run:
            raise Refused(f"{self.directory} holds the policy of run {name}", "give each run its own policy.directory")

    def _sweep(self) -> None:
        """Before its first write a learner ends what others had begun; later ones could only be its successor's."""
        if not self._swept:
            for unfinished in self.directory.glob(".writing-*"):
                with contextlib.suppress(FileNotFoundError):  # it has just appeared as a version: then it stays
                    unfinished.rename(unfinished.with_name(unfinished.name.replace("writing", "trash")))
        self._swept = True
        self._sweep_trash()

    def _sweep_trash(self) -> None:
        for leftover in self.directory.glob(".trash-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # what stays is swept next time

    def _is_there(self, manifest: Manifest, replace: bool) -> bool:
        """True if exactly this content has appeared before; else makes way for it, or raises `Refused`."""
        version = manifest.policy_version
        if not self.path(version).exists():
            return False
        if self._intact(version):
            if read(self.path(version), self._keys.run, version) == manifest:
                return True
            if not replace or version <= max(self.used(), self.newest() or -1):
                raise Refused(
                    f"policy version {version} exists in {self.directory} with another content",
                    "a number is never used twice: continue from a newer checkpoint, or use another policy.directory",
                )
        self.path(version).rename(self._aside("trash", version))
        return False

    def _intact(self, version: int) -> bool:
        try:
            self._checked(version)
        except Malformed as damage:
            log.warning("policy version is damaged and written again", version=version, damage=str(damage))
            return False
        return True
