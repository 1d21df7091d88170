"""Asked to leave, a generator waits for what it has in hand; asked twice, it hands that back at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis

from broker.keys import Keys
from broker.schema import Ints, Ticket
from producer.engine import Completion
from producer.transformers_engine import TransformersEngine
from tests.producer.one_generator import OneGenerator

TICKET = Ticket("t0", 0, 0, 0)
DRAIN = 600.0  # longer than any test


class Slow(TransformersEngine):
    """Answers once somebody says so."""

    asked: asyncio.Event
    go: asyncio.Event

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        self.asked.set()
        await self.go.wait()
        return await super().sample(prompt, seed, request_id)


@pytest.fixture
def one(redis: redis.Redis, keys: Keys, tmp_path: Path, tiny_model: Path) -> OneGenerator:
    made = OneGenerator(redis, keys, tmp_path, tiny_model)
    patient = made.recipe.generator.model_copy(update={"drain_seconds": DRAIN})
    made.recipe = made.recipe.model_copy(update={"generator": patient})
    made.engine_class, Slow.asked, Slow.go = Slow, asyncio.Event(), asyncio.Event()
    made.issue(TICKET)
    return made


def outcomes(one: OneGenerator) -> tuple[float, float]:
    """Tickets published and handed back."""
    return one.figure("tickets_total", event="published"), one.figure("tickets_total", event="handed_back")


def test_what_is_in_hand_is_finished(one: OneGenerator) -> None:
    """The answer comes after the generator was asked to leave, and before its drain is over."""

    def asked() -> bool:
        if Slow.asked.is_set():
            asyncio.get_running_loop().call_later(0.3, Slow.go.set)
        return Slow.asked.is_set()

    one.run_until(asked)
    assert outcomes(one) == (1, 0)


def test_whoever_is_asked_twice_hands_it_back(one: OneGenerator) -> None:
    def asked() -> bool:
        if Slow.asked.is_set():
            asyncio.get_running_loop().call_later(0.3, one.hurried.set)
        return Slow.asked.is_set()

    began = time.monotonic()
    one.run_until(asked)
    assert outcomes(one) == (0, 1)
    assert time.monotonic() - began < DRAIN
    pending = one.client.xpending_range(one.keys.tickets("train"), "generators", "-", "+", 10)
    assert [entry["consumer"] for entry in pending] == [b"returned"], "whoever asks next has it"
