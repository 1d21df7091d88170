"""Groups on their way to Redis: those that are done while others are being sent go together, in one step of the server.

Invariant: a group goes as soon as nothing else is under way, and whoever brought it hears what became of his own; one
that he has given up by then is left out. Refuses to know tickets, Redis and what to do about an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker.schema import RolloutGroup
from broker.tickets import Claim

Answer = tuple[Claim, RolloutGroup]


class Outbox:
    """Of one generator: where many are done at a time, a round trip and a thread for each would be what it does."""

    def __init__(self, publish: Callable[[Sequence[Answer]], list[bool]]) -> None:
        """`publish` says of each, in order, whether it was the first; it is called on another thread."""
        self._publish = publish
        self._waiting = list[tuple[Answer, asyncio.Future[bool]]]()
        self._sender: asyncio.Task[None] | None = None

    async def publish(self, claim: Claim, group: RolloutGroup) -> bool:
        """False if another was first. Raises what sending it raised."""
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(((claim, group), heard))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await heard

    async def _send(self) -> None:
        while together := [(answer, heard) for answer, heard in self._waiting if not heard.done()]:
            self._waiting = []
            try:
                said = await asyncio.to_thread(self._publish, [answer for answer, _ in together])
            except Exception as error:
                for _, heard in together:
                    if not heard.done():
                        heard.set_exception(error)
            else:
                for (_, heard), first in zip(together, said, strict=True):
                    if not heard.done():
                        heard.set_result(first)
