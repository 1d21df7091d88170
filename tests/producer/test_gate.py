"""A gate: many pass at once, nobody is inside while it is closed, and nobody is left standing outside."""

from __future__ import annotations

import asyncio

import pytest

from producer.gate import Gate


class Visitor:
    """Somebody who passes the gate and stays inside until told to leave."""

    def __init__(self, gate: Gate) -> None:
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._pass(gate))

    async def _pass(self, gate: Gate) -> None:
        async with gate.entered():
            self.inside = True
            try:
                await self.leave.wait()
            finally:
                self.inside = False


class Keeper:
    """Somebody who closes the gate and keeps it closed until told to open it."""

    def __init__(self, gate: Gate) -> None:
        self.closed = False
        self.open = asyncio.Event()
        self.task = asyncio.create_task(self._close(gate))

    async def _close(self, gate: Gate) -> None:
        async with gate.closed():
            self.closed = True
            await self.open.wait()
            self.closed = False


async def settle() -> None:
    """Let everybody go as far as they get."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_many_are_inside_at_once() -> None:
    async def story() -> None:
        gate = Gate()
        visitors = [Visitor(gate) for _ in range(5)]
        await settle()
        assert all(visitor.inside for visitor in visitors)
        for visitor in visitors:
            visitor.leave.set()
        await asyncio.gather(*(visitor.task for visitor in visitors))

    asyncio.run(story())


def test_closing_waits_for_those_inside_and_holds_back_those_outside() -> None:
    async def story() -> None:
        gate = Gate()
        early = [Visitor(gate), Visitor(gate)]
        await settle()
        keeper = Keeper(gate)
        await settle()
        late = Visitor(gate)
        early[0].leave.set()
        await settle()
        assert not keeper.closed, "one is still inside"
        assert not late.inside, "or else closing might never come to an end"
        early[1].leave.set()
        await settle()
        assert keeper.closed
        assert not late.inside
        keeper.open.set()
        await settle()
        assert late.inside
        late.leave.set()
        await late.task

    asyncio.run(story())


def test_an_empty_gate_closes_at_once_and_again_and_again() -> None:
    async def story() -> None:
        gate = Gate()
        for _ in range(3):
            async with gate.closed():
                pass
            async with gate.entered():
                pass

    asyncio.run(asyncio.wait_for(story(), 10))


def test_who_is_cancelled_inside_has_left() -> None:
    async def story() -> None:
        gate = Gate()
        visitor = Visitor(gate)
        await settle()
        visitor.task.cancel()
        async with gate.closed():
            assert not visitor.inside

    asyncio.run(asyncio.wait_for(story(), 10))


def test_who_is_cancelled_outside_was_never_inside() -> None:
    async def story() -> None:
        gate = Gate()
        async with gate.closed():
            visitor = Visitor(gate)
            await settle()
            visitor.task.cancel()
            await settle()
        async with gate.closed():
            assert not visitor.inside

    asyncio.run(asyncio.wait_for(story(), 10))


def test_the_gate_opens_again_however_closing_ends() -> None:
    async def story() -> None:
        gate = Gate()
        with pytest.raises(ZeroDivisionError):
            async with gate.closed():
                raise ZeroDivisionError
        first = Visitor(gate)
        await settle()
        keeper = Keeper(gate)
        await settle()
        keeper.task.cancel()  # it was still waiting for the first to leave
        await settle()
        second = Visitor(gate)
        await settle()
        assert first.inside
        assert second.inside

    asyncio.run(story())


def test_a_second_keeper_keeps_it_closed_when_the_first_has_opened() -> None:
    async def story() -> None:
        gate = Gate()
        first, second = Keeper(gate), Keeper(gate)
        await settle()
        visitor = Visitor(gate)
        first.open.set()
        await settle()
        assert not (second.closed and visitor.inside), "within `closed` nobody is inside"
        second.open.set()
        await settle()
        assert visitor.inside

    asyncio.run(story())
