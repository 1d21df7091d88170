"""Who wants the engine and who is done with it: never more than it has slots, never more than twice as many in all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from broker.schema import Ticket
from broker.tickets import Claim
from producer.hand import Hand


def claims(count: int) -> list[Claim]:
    return [Claim(b"%d-0" % n, Ticket(f"t{n}", 0, n, 0), 1) for n in range(count)]


def with_hand(slots: int, story: Callable[[Hand, Callable[[Claim], None]], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        hand, never = Hand(slots), asyncio.Event()

        def take(claim: Claim) -> None:
            hand.take(claim, asyncio.create_task(_ends(never)))

        await story(hand, take)
        await hand.drained(0.0, asyncio.Event(), lambda: None)

    asyncio.run(asyncio.wait_for(run(), 30))


async def _ends(event: asyncio.Event) -> None:
    await event.wait()


def test_a_group_that_was_sampled_leaves_its_slot() -> None:
    async def story(hand: Hand, take: Callable[[Claim], None]) -> None:
        first, second, third = claims(3)
        take(first)
        take(second)
        assert (hand.busy, hand.free) == (2, 0)
        hand.sampled(first)
        assert (hand.busy, hand.free) == (1, 1)
        take(third)
        assert (hand.busy, hand.free) == (2, 0)
        assert hand.claims == [first, second, third], "all of them are still held"
        hand.drop(first)
        assert (hand.busy, hand.free) == (2, 0)

    with_hand(2, story)


def test_what_is_being_published_is_not_lost() -> None:
    """The lease of a ticket ends with its publication, which whoever renews leases may hear of first."""

    async def story(hand: Hand, take: Callable[[Claim], None]) -> None:
        sampling, publishing = claims(2)
        take(sampling)
        take(publishing)
        hand.sampled(publishing)
        lost = hand.lose(sampling)
        assert lost is not None
        lost.cancel()
        assert hand.lose(publishing) is None
        assert hand.lose(sampling) is None, "once"
        assert hand.claims == [publishing]

    with_hand(2, story)


@pytest.mark.parametrize("slots", [1, 3])
def test_verifiers_that_cannot_keep_up_hold_up_the_claiming(slots: int) -> None:
    async def story(hand: Hand, take: Callable[[Claim], None]) -> None:
        many = claims(2 * slots)
        for claim in many:
            assert hand.free > 0
            take(claim)
            hand.sampled(claim)
        assert (hand.busy, hand.free) == (0, 0)
        hand.drop(many[0])
        assert hand.free == 1

    with_hand(slots, story)


def test_what_is_in_hand_may_be_finished_before_it_is_given_up() -> None:
    async def story() -> tuple[bool, bool]:
        hand, hurried, given_up = Hand(2), asyncio.Event(), []
        quick, endless = (asyncio.create_task(asyncio.sleep(seconds)) for seconds in (0.0, 600.0))
        for claim, task in zip(claims(2), (quick, endless), strict=True):
            hand.take(claim, task)
        asyncio.get_running_loop().call_later(0.1, hurried.set)
        await hand.drained(300.0, hurried, lambda: given_up.append(quick.done()))
        assert given_up == [True], "only then, and once"
        return quick.cancelled(), endless.cancelled()

    assert asyncio.run(asyncio.wait_for(story(), 30)) == (False, True)
