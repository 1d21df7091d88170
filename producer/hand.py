"""What a generator has in hand: tickets that wait or are sampled, and those whose groups are scored and published.

Invariant: no more tickets want the engine than it has slots, and there are never more than twice as many in all: a
group that is being scored does not keep the engine waiting, and verifiers that cannot keep up hold up the claiming.
Refuses to know what is done with a ticket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.tickets import Claim


@dataclass
class Hand:
    """Of a generator whose engine has so many `slots`."""

    slots: int
    serving: dict[bytes, tuple[Claim, asyncio.Task[None]]] = field(default_factory=dict)
    _sampled: set[bytes] = field(default_factory=set)

    def take(self, claim: Claim, task: asyncio.Task[None]) -> None:
        """A ticket, and who serves it."""
        self.serving[claim.entry_id] = (claim, task)

    def sampled(self, claim: Claim) -> None:
        """The engine has done its part."""
        self._sampled.add(claim.entry_id)

    def drop(self, claim: Claim) -> None:
        """It is no longer ours."""
        self._sampled.discard(claim.entry_id)
        self.serving.pop(claim.entry_id, None)

    def lose(self, claim: Claim) -> asyncio.Task[None] | None:
        """Its lease is not ours: drop it, and who served it is to stop. None for one that is published any moment.

        Or just was: a publication ends the lease as well, and if it had lapsed before, says so itself.
        """
        if claim.entry_id in self._sampled or claim.entry_id not in self.serving:
            return None
        return self.serving.pop(claim.entry_id)[1]

    async def drained(self, seconds: float, hurried: asyncio.Event, leave: Callable[[], None]) -> None:
        """Let what is in hand be finished, for so long or until `hurried`; then `leave`, and have the rest given up."""
        tasks = [task for _, task in self.serving.values()]
        served = asyncio.gather(*tasks, return_exceptions=True)
        hurry: asyncio.Future[Any] = asyncio.ensure_future(hurried.wait())
        await asyncio.wait((served, hurry), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        leave()
        for task in (hurry, *tasks):
            task.cancel()  # which does nothing to one that is done
        await served

    @property
    def claims(self) -> list[Claim]:
        """All that is held, oldest first."""
        return [claim for claim, _ in self.serving.values()]

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self.serving.keys() - self._sampled)

    @property
    def free(self) -> int:
        """Tickets that may be added."""
        return min(self.slots - self.busy, 2 * self.slots - len(self.serving))
