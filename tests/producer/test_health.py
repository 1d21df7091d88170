"""What a generator says of its health: to be idle is not to be ill, to hold tickets and do nothing about them is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from broker.keys import Keys
from broker.schema import Ints, Ticket
from producer.engine import Completion
from producer.transformers_engine import TransformersEngine
from tests.producer.one_generator import OneGenerator


class Hanging(TransformersEngine):
    """An engine that never answers."""

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        await asyncio.Event().wait()
        return await super().sample(prompt, seed, request_id)


@pytest.fixture
def one(redis: redis.Redis, keys: Keys, tmp_path: Path, tiny_model: Path) -> OneGenerator:
    return OneGenerator(redis, keys, tmp_path, tiny_model)


class Turns:
    """Time, by the turns of the claim loop: each of them lasts 400 seconds."""

    def __init__(self, one: OneGenerator, wanted: int) -> None:
        self.one, self.wanted, self.seen, self.counted = one, wanted, 0, 0.0

    def __call__(self) -> bool:
        counted = self.one.figure("phase_seconds_total", phase="wait_ticket")
        if counted > self.counted:
            self.counted, self.seen = counted, self.seen + 1
            self.one.clock.now += 400.0
        return self.seen >= self.wanted


def test_a_generator_without_tickets_is_idle_and_healthy_for_ever(one: OneGenerator) -> None:
    """The learner is slow, or gone: to restart the generator would cure nothing."""
    one.run_until(Turns(one, 4))
    assert one.metrics.wait.reason == "ticket"
    assert one.metrics.waited > 1000.0
    assert one.metrics.health()["healthy"]


def test_one_whose_engine_does_not_answer_is_not(one: OneGenerator) -> None:
    one.engine_class = Hanging
    one.issue(Ticket("t0000000000", 0, 0, 0))
    one.run_until(Turns(one, 4))
    assert one.metrics.wait.reason == "none", "it ought to be sampling"
    assert not one.metrics.health()["healthy"]


def test_one_that_waits_for_a_version_names_it_and_goes_on_once_it_comes(one: OneGenerator) -> None:
    one.issue(Ticket("t0000000000", 0, 0, 3))
    turns = Turns(one, 4)

    def then_it_comes() -> bool:
        if not turns():
            return False
        if one.policy.newest() == 0:
            assert (one.metrics.wait.reason, one.metrics.wait.detail) == ("version", "3")
            assert not one.metrics.health()["healthy"]
            one.publish_version(3)
        return bool(one.rollouts.claim(1, 0))

    one.run_until(then_it_comes)
    assert one.metrics.health()["healthy"]
    assert one.figure("policy_version") == 3
