"""An answer that never comes, because whoever should give it is dead, is not waited for until the deadline."""

from __future__ import annotations

import asyncio

import pytest

from producer.lifeline import while_alive


async def answer() -> int:
    await asyncio.sleep(0)
    return 7


async def fail() -> int:
    raise ValueError("no")


def test_an_answer_is_an_answer() -> None:
    assert asyncio.run(while_alive(answer(), lambda: True)) == 7
    assert asyncio.run(while_alive(answer(), lambda: False)) == 7, "one that came before the death counts"
    with pytest.raises(ValueError, match="no"):
        asyncio.run(while_alive(fail(), lambda: True))


def test_a_death_ends_the_wait_and_the_request() -> None:
    async def hang() -> bool:
        request = asyncio.ensure_future(asyncio.Event().wait())
        with pytest.raises(RuntimeError, match="died before it answered"):
            await while_alive(request, lambda: False)
        await asyncio.wait([request])
        return request.cancelled()

    assert asyncio.run(asyncio.wait_for(hang(), 20))
