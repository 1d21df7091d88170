"""An engine that dies is started again and its tickets go to others; one that is poisoned by a ticket is not blamed."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.errors import Refused
from broker.keys import GENERATORS, Keys
from broker.schema import Ints, Ticket
from producer.engine import Completion
from producer.keeper import LONGEST_PAUSE, MAX_FAILURES, EngineKeeper
from producer.transformers_engine import TransformersEngine
from tests.producer.one_generator import OneGenerator

TICKETS = [Ticket(f"t{n:010d}", n, n, 0) for n in range(4)]


class Fragile(TransformersEngine):
    """Dies of its second request, as a process that was killed does: nothing answers until the next start."""

    starts = 0

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.requests, self.dead = itertools.count(1), False

    @property
    def alive(self) -> bool:
        return not self.dead

    async def start(self) -> None:
        await super().start()
        type(self).starts += 1
        self.dead, self._version = False, -1

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        if self.dead or next(self.requests) == 2:
            self.dead = True
            raise RuntimeError("the engine's process was killed")
        return await super().sample(prompt, seed, request_id)


class Allergic(TransformersEngine):
    """Lives, and never answers the ticket with seed 1."""

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        if seed == 1:
            raise ValueError("this prompt again")
        return await super().sample(prompt, seed, request_id)


class Hung(TransformersEngine):
    """Never answers its first request; alive as far as anybody can tell."""

    starts = 0

    async def start(self) -> None:
        await super().start()
        type(self).starts += 1

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        if self.starts == 1:
            await asyncio.Event().wait()
        return await super().sample(prompt, seed, request_id)


@pytest.fixture
def one(redis: redis.Redis, keys: Keys, tmp_path: Path, tiny_model: Path) -> OneGenerator:
    made = OneGenerator(redis, keys, tmp_path, tiny_model)
    for ticket in TICKETS:
        made.issue(ticket)
    return made


def test_a_dead_engine_is_started_again_and_every_ticket_is_answered(one: OneGenerator) -> None:
    one.engine_class, Fragile.starts = Fragile, 0
    groups = one.published(4)
    assert sorted(group.ticket_id for group in groups) == [ticket.ticket_id for ticket in TICKETS]
    assert not any(group.failed for group in groups)
    assert Fragile.starts == 2
    assert one.figure("tickets_total", event="failed") >= 1
    assert one.figure("policy_version") == 0, "and it has taken up the policy again"


def test_the_tickets_of_a_dead_engine_are_at_once_somebody_else_s(one: OneGenerator) -> None:
    """Counted as delivered, in nobody's hands, and as idle as if their lease had lapsed."""
    one.engine_class = Fragile

    def dropped() -> bool:
        return one.figure("tickets_total", event="failed") >= 1

    one.run_until(dropped)
    pending: Any = one.client.xpending_range(one.keys.tickets("train"), GENERATORS, "-", "+", 10)
    returned = [entry for entry in pending if entry["consumer"] == b"returned"]
    assert all(entry["time_since_delivered"] > 60_000 for entry in returned)
    assert 1 in [entry["times_delivered"] for entry in returned], "the others were handed back unharmed, at the stop"


def test_a_ticket_that_no_engine_can_answer_fails_alone(one: OneGenerator) -> None:
    one.engine_class = Allergic
    groups = {group.ticket_id: group for group in one.published(4)}
    assert [ticket_id for ticket_id, group in groups.items() if group.failed] == [TICKETS[1].ticket_id]
    assert groups[TICKETS[1].ticket_id].failed == "delivered 3 times, never answered"


def test_an_engine_that_hangs_is_taken_for_dead(one: OneGenerator) -> None:
    one.engine_class, Hung.starts = Hung, 0
    short = one.recipe.generator.model_copy(update={"sample_seconds": 4.0})
    one.recipe = one.recipe.model_copy(update={"generator": short})
    groups = one.published(4)
    assert sorted(group.ticket_id for group in groups) == [ticket.ticket_id for ticket in TICKETS]
    assert Hung.starts == 2


def test_one_that_keeps_dying_is_given_up_after_longer_and_longer_pauses(one: OneGenerator) -> None:
    paused, engine = list[float](), Fragile(one.recipe.run.model, one.recipe)

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    async def started() -> None:
        keeper.answered() if len(paused) == 3 else None
        engine.dead = True
        keeper.failed(RuntimeError(f"death {len(paused) + 1}"))
        assert not keeper.ready

    keeper = EngineKeeper(engine, pause)
    engine.dead = True
    keeper.failed(RuntimeError("death 1"))
    with pytest.raises(RuntimeError, match=f"death {3 + MAX_FAILURES + 1}"):
        asyncio.run(asyncio.wait_for(keeper.run(started), 30))
    assert paused == [1, 2, 4, 1, 2, 4, 8, 16]
    assert max(paused) <= LONGEST_PAUSE
    asyncio.run(engine.stop())


def test_a_damaged_version_leaves_the_old_weights_serving_and_is_taken_up_once_it_is_whole(one: OneGenerator) -> None:
    one.publish_version(1)
    weights = one.policy.path(1) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\1\0\1")

    def step() -> bool:
        if one.figure("refresh_failures_total") == 1:
            weights.write_bytes(whole)
        return one.figure("policy_version") == 1

    one.client.set(one.keys.policy, 0)

    def served_and_then_tried() -> bool:
        if one.figure("groups_total", kind="train") == 4 and one.client.get(one.keys.policy) == b"0":
            one.client.set(one.keys.policy, 1)
        return step()

    one.run_until(served_and_then_tried)
    assert one.figure("refresh_failures_total") >= 1
    assert one.figure("groups_total", kind="train") == 4


def test_an_engine_that_does_not_start_at_once_is_tried_again(one: OneGenerator) -> None:
    """The memory of the one before may not be free yet; that is no reason to end."""

    class Cramped(Fragile):
        refusals = 2

        async def start(self) -> None:
            if self.dead and self.refusals:
                self.refusals -= 1
                raise Refused("no room on the device", "")
            await super().start()

    one.engine_class, Cramped.starts = Cramped, 0
    assert len(one.published(4)) == 4
    assert Cramped.starts == 2


def test_a_death_that_a_refresh_notices_first_is_one_all_the_same(one: OneGenerator) -> None:
    class DeadOnArrival(Exception):
        """What a library raises is nobody's to foresee."""

    class Fading(Fragile):
        async def refresh(self, folder: Path, policy_version: int) -> None:
            if self.starts == 1:
                self.dead = True
                raise DeadOnArrival
            await super().refresh(folder, policy_version)

    one.engine_class, Fading.starts = Fading, 0
    assert len(one.published(4)) == 4
    assert one.figure("refresh_failures_total") == 1


def test_weights_of_a_history_that_was_taken_back_are_given_up(one: OneGenerator) -> None:
    one.publish_version(1)
    one.publish_version(2)

    def taken_back() -> bool:
        if one.figure("policy_version") == 2:
            one.client.set(one.keys.policy, 1)
        return one.figure("policy_version") == 1

    one.run_until(taken_back)


def test_no_ticket_is_claimed_before_there_are_weights_to_answer_it_with(one: OneGenerator) -> None:
    one.client.delete(one.keys.policy)
    looks = 0

    def seen() -> bool:
        nonlocal looks
        looks += 1
        if looks < 50:
            assert one.figure("tickets_total", event="claimed") == 0
        elif looks == 50:
            one.client.set(one.keys.policy, 0)
        return one.figure("groups_total", kind="train") == 4

    one.run_until(seen)
    assert looks > 50
