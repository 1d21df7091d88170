"""Groups that are done while others are being sent go together; each of those who brought them hears of his own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from broker.schema import RolloutGroup, Ticket, tombstone
from broker.tickets import Claim
from producer.outbox import Answer, Outbox

Story = Callable[[Outbox, "Wire"], Coroutine[Any, Any, None]]


class Wire:
    """Sends when it is told to; remembers what went together. A group of `t1` is a copy."""

    def __init__(self) -> None:
        self.sent = list[list[str]]()
        self.error: Exception | None = None
        self.under_way, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def send(self, answers: Sequence[Answer]) -> list[bool]:
        self.sent.append([claim.ticket.ticket_id for claim, _ in answers])
        self.under_way.release()
        assert self.go_on.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        return [claim.ticket.ticket_id != "t1" for claim, _ in answers]

    async def sending(self) -> None:
        """Returns when it has begun to send."""
        assert await asyncio.to_thread(self.under_way.acquire, timeout=30)


def answer(number: int) -> tuple[Claim, RolloutGroup]:
    ticket = Ticket(f"t{number}", 0, 0, 0)
    return Claim(b"%d-0" % number, ticket, 1), tombstone(ticket, "for want of a group")


def play(story: Story) -> None:
    wire = Wire()
    asyncio.run(asyncio.wait_for(story(Outbox(wire.send), wire), 60))


def test_what_is_done_meanwhile_goes_together() -> None:
    async def story(outbox: Outbox, wire: Wire) -> None:
        first = asyncio.create_task(outbox.publish(*answer(0)))
        await wire.sending()
        others = [asyncio.create_task(outbox.publish(*answer(n))) for n in (1, 2, 3)]
        await asyncio.sleep(0)  # they have begun
        wire.go_on.release()
        assert await first
        wire.go_on.release()
        assert await asyncio.gather(*others) == [False, True, True]
        assert wire.sent == [["t0"], ["t1", "t2", "t3"]]
        wire.go_on.release()
        assert await outbox.publish(*answer(4)), "and after a rest it goes on"

    play(story)


def test_what_was_given_up_before_it_went_is_left_out() -> None:
    async def story(outbox: Outbox, wire: Wire) -> None:
        first, second, third = (asyncio.create_task(outbox.publish(*answer(n))) for n in (0, 2, 3))
        await wire.sending()
        late = asyncio.create_task(outbox.publish(*answer(4)))
        await asyncio.sleep(0)
        late.cancel()
        wire.go_on.release()
        assert all(await asyncio.gather(first, second, third))
        with pytest.raises(asyncio.CancelledError):
            await late
        await asyncio.sleep(0)  # time enough to send nothing
        assert wire.sent == [["t0", "t2", "t3"]]

    play(story)


def test_an_error_reaches_all_whose_groups_were_on_the_way_and_nobody_else() -> None:
    async def story(outbox: Outbox, wire: Wire) -> None:
        first = asyncio.create_task(outbox.publish(*answer(0)))
        await wire.sending()
        second = asyncio.create_task(outbox.publish(*answer(2)))
        await asyncio.sleep(0)
        wire.error = ConnectionError("gone")
        wire.go_on.release()
        with pytest.raises(ConnectionError, match="gone"):
            await first
        await wire.sending()
        wire.error = None
        wire.go_on.release()
        assert await second

    play(story)
