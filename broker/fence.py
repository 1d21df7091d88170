"""The one writer of a run's books: each of its transactions takes effect exactly once, or it learns why not.

Invariant: a transaction is applied once, however often the connection broke, by whoever took over last, on a Redis that
holds everything this writer was told was done; else it is not applied and raises. The mark that proves it (who writes,
and how many commits there were) changes in the same MULTI. Refuses to know what is written.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import redis

from broker.errors import Behind, Fenced
from broker.keys import Keys
from broker.patience import Patience
from broker.points import reached

Command = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Mark:
    """Epochs count takeovers, commits count transactions; both only grow in the history of a run."""

    epoch: int = 0
    owner: str = ""
    commits: int = 0

    def encode(self) -> str:
        """As it stands in Redis."""
        return f"{self.epoch} {self.commits} {self.owner}"

    @staticmethod
    def decode(raw: bytes | None) -> Mark:
        """From Redis; epoch 0 where nobody has ever written."""
        if raw is None:
            return Mark()
        epoch, commits, owner = raw.decode().split(" ", 2)
        return Mark(int(epoch), owner, int(commits))


class Fence:
    """Shared by all ledgers of one learner and all its threads."""

    def __init__(self, client: redis.Redis, keys: Keys, patience: Patience | None = None) -> None:
        """`patience` is for pipelines; a client that has some waits for single commands by itself."""
        self._client, self._key = client, keys.writer
        self.patience = patience or Patience(0.0)
        self._lock = threading.Lock()
        self.mark = Mark()

    def take_over(self) -> None:
        """Become the only writer: an older one's next transaction raises `Fenced`."""
        found = self.found()
        self.mark = Mark(found.epoch + 1, uuid.uuid4().hex, found.commits)
        self._client.set(self._key, self.mark.encode())

    def found(self) -> Mark:
        """The mark in Redis."""
        raw: Any = self._client.get(self._key)
        return Mark.decode(raw)

    def check(self) -> None:
        """Raises `Fenced` or `Behind` if the next transaction would."""
        with self._lock:
            self._judge(self.found())

    def execute(self, commands: Sequence[Command], known: Mark | None = None) -> None:
        """One MULTI, exactly once. Raises `Fenced`, `Behind`, or what a command was refused for.

        `known` is a mark that this run has certainly reached, from a checkpoint, where these commands give Redis back
        what it has lost: only with them may the mark say that nothing is missing, and count on from there.
        """
        known = known or Mark()
        if not self.mark.owner:
            raise Fenced("nobody writes these books before having taken them over")
        with self._lock:
            epoch = max(self.mark.epoch, known.epoch + 1)
            after = replace(self.mark, epoch=epoch, commits=max(self.mark.commits, known.commits) + 1)
            self.patience(partial(self._attempt, commands, after))
            self.mark = after

    def _attempt(self, commands: Sequence[Command], after: Mark) -> None:
        while True:
            with self._client.pipeline(transaction=True) as pipe:
                try:
                    pipe.watch(self._key)
                    raw: Any = pipe.get(self._key)
                    if Mark.decode(raw) == after:
                        return  # an earlier attempt was heard, and its answer lost
                    self._judge(Mark.decode(raw))
                    pipe.multi()
                    for arguments, options in commands:
                        pipe.execute_command(*arguments, **options)
                    pipe.set(self._key, after.encode())
                    reached("fence.watched")
                    pipe.execute()
                    reached("fence.committed")
                except redis.WatchError:  # the mark has changed, or the connection broke under the watch: look again
                    continue
                return

    def _judge(self, found: Mark) -> None:
        if found == self.mark:
            return
        mine = self.mark
        if found.epoch > mine.epoch or (found.epoch == mine.epoch and found.owner != mine.owner):
            raise Fenced("another learner has taken over this run")
        raise Behind(f"Redis has lost what it had acknowledged: {mine.commits - found.commits} transactions or more")
