"""How much of a run can be in Redis: computed from its recipe, and measured on a server that is filled to the brim."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_library
from safetensors.numpy import save_file

from broker import policies
from broker.audit import Excerpt, Sampling
from broker.audit_log import WAITING, AuditLog
from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.fence import Fence
from broker.keys import Keys
from broker.ledger import DEAD_LETTERS, Entry
from broker.schema import MAX_COMPONENTS, MAX_NAME_BYTES, Kind, Rollout, RolloutGroup, Ticket, VersionSpan, encode_group
from broker.settings import BrokerSettings
from consumer import memory
from consumer.__main__ import require_redis
from consumer.evaluation import eval_id
from consumer.inbox import CLAIM_COUNT
from consumer.recipe import ProcessRecipe
from consumer.settings import LearnerRecipe
from tests.consumer.desk import Desk, ids

NODE = 100  # entries of a stream's node: Redis trims whole ones


def recipe(max_tokens: int, **learner: Any) -> LearnerRecipe:
    return LearnerRecipe.model_validate(
        {
            "run": {"name": "r" * 64, "model": "none", "steps": 1000},
            "sampling": {"max_tokens": max_tokens, "max_prompt_tokens": max_tokens, "group_size": 8},
            "learner": {"groups_per_step": 4, "checkpoint_every": 4, "guard_steps": 2, "eval_problems": 5, **learner},
        }
    )


def largest(of: LearnerRecipe, ticket: Ticket) -> RolloutGroup:
    """As large as the schema, the recipe and rule W let it be: every number needs all of its bytes."""
    length, newest = of.sampling.max_tokens, 2**31 - 1
    spans = length if ticket.kind == "eval" else min(length, of.run.max_staleness + 2)
    edges = [*range(spans), length]
    cut = tuple(VersionSpan(newest, a, b) for a, b in pairwise(edges))
    tokens, logprobs = np.full(length, newest, np.int32), np.full(length, -1.5, np.float32)
    components = {f"{n:0{MAX_NAME_BYTES}d}": 0.5 for n in range(MAX_COMPONENTS)}
    prompt = np.full(of.sampling.max_prompt_tokens, newest, np.int32)
    rollouts = tuple(Rollout(tokens, logprobs, cut, r / 7, components, True) for r in range(of.sampling.group_size))
    return RolloutGroup(ticket.ticket_id, ticket.kind, 2**52, prompt, rollouts, "g" * 256, "", 1.5)


class Brimful:
    """A server of its own, and a desk that puts into it all that a run may hold at once."""

    def __init__(self, client: redis_library.Redis, of: LearnerRecipe, folder: Path) -> None:
        self.client, self.of = client, of
        self.desk = Desk(client, Keys(of.run.name), folder)

    def fill(self) -> None:
        groups, evaluations = memory.unsettled_groups(self.of), memory.evaluation_groups(self.of)
        self._answer("train", ids(*range(groups)))
        self._answer("eval", [eval_id(10**7, "periodic", n) for n in range(evaluations)])
        ledger, size = self.desk.ledger(), self.of.learner.groups_per_step
        with ledger.transaction() as pipe:
            for step in range(groups // size):
                ledger.journal(pipe, Entry(step, step, True, tuple(ids(*range(step * size, (step + 1) * size)))))
        for number in range(DEAD_LETTERS + 1):
            with ledger.transaction() as pipe:
                ledger.dead_letter(pipe, f"t{number}".ljust(64, "x"), "\N{WATER WAVE}" * 9999, b"p" * 9999)
        self._tell(self.of.broker.audit_entries + NODE)

    def _tell(self, count: int) -> None:
        name = "t".ljust(64, "x")
        note = Sampling(
            ticket_id=name, problem=0, seed=0, min_policy_version=0, issued_at=0.0, deliveries=1, generator="g",
            prompt=Excerpt.of("p" * 99_999),
        )  # fmt: skip
        options = self.client.connection_pool.connection_kwargs
        url = f"redis://{options['host']}:{options['port']}"
        log = AuditLog.of(self.of.broker, url, self.desk.keys)
        for number in range(count):
            log.write(name, lambda: note)
            if number % WAITING == WAITING - 1:
                log.close()
        log.close()
        assert log.lost == 0

    def _answer(self, kind: Kind, names: list[str]) -> None:
        ledger = self.desk.ledger(kind)
        with ledger.transaction() as pipe:
            ledger.issue(pipe, [Ticket(name, 2**52, 2**31 - 1, 2**31 - 1, kind) for name in names])
        for ticket in self.desk.claim():
            assert self.desk.publish(largest(self.of, ticket))

    def claimed(self) -> tuple[int, int]:
        """A learner claims as much as it does at once: what stays then, and what it came to meanwhile."""
        assert all(arrival.group for arrival in self.desk.rollouts.claim(CLAIM_COUNT, 0))
        info: Any = self.client.info("memory")
        return int(info["used_memory"]), int(info["used_memory_peak"])


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[redis_library.Redis]:
    with EmbeddedServer(tmp_path / "redis") as server, connect(BrokerSettings(), server.url) as client:
        yield client


@pytest.mark.parametrize("max_tokens", [4, 700, 3000])
def test_a_server_filled_with_the_largest_groups_stays_below_the_bound_and_not_far_below(
    empty: redis_library.Redis, tmp_path: Path, max_tokens: int
) -> None:
    of = recipe(max_tokens)
    brimful = Brimful(empty, of, tmp_path)
    brimful.fill()
    bound, (stays, peak) = memory.most(of), brimful.claimed()
    assert stays < peak < bound
    assert bound < 2 * peak, "a bound that is absurd keeps runs from starting"


def test_a_group_is_never_larger_than_it_is_reckoned_and_hardly_smaller() -> None:
    for max_tokens in (1, 4, 700, 40_000):
        of = recipe(max_tokens)
        for kind, spans in (("train", of.run.max_staleness + 2), ("eval", max_tokens)):
            size = len(encode_group(largest(of, Ticket("t" * 64, 0, 0, 0, kind))))  # type: ignore[arg-type]
            reckoned = memory.group_bytes(of, spans)
            assert size <= reckoned < 1.25 * size, (max_tokens, kind)


def test_steps_without_a_checkpoint_are_two_intervals_the_guard_s_patience_and_those_up_to_a_publication() -> None:
    of = recipe(16, checkpoint_every=10, guard_steps=7, publish_every=3)
    assert memory.unsettled_groups(of) == (2 + 1) * 4 + (2 * 10 + 7 + 2) * 4
    assert memory.evaluation_groups(of) == 3 * 5


def test_an_audit_log_that_is_off_takes_no_room_and_one_that_is_on_all_that_it_may() -> None:
    without, more = ({**recipe(16).model_dump(), "broker": {"audit_entries": n}} for n in (0, 4000))
    off, usual, on = memory.most(LearnerRecipe(**without)), memory.most(recipe(16)), memory.most(LearnerRecipe(**more))
    assert usual - off > 2000 * 16384
    assert on - usual > 2000 * 16384


def test_a_server_that_the_run_could_fill_is_refused_with_both_numbers_and_the_remedy() -> None:
    of = recipe(700)
    needed = memory.most(of)
    with pytest.raises(Refused) as caught:
        memory.require_room(of, {"maxmemory": 16_000_000}, "host:6379")
    line = str(caught.value)
    numbers = f"may use 16.0 MB (maxmemory), this run can fill {needed / 1e6:,.1f} MB"
    assert line.startswith(f"Redis at host:6379 {numbers}: raise maxmemory, or lower learner.checkpoint_every, ")
    for enough in (needed, 0):  # 0 is no limit
        memory.require_room(of, {"maxmemory": enough}, "host:6379")


def test_a_learner_refuses_such_a_server_before_it_has_written_anything(empty: redis_library.Redis) -> None:
    options = empty.connection_pool.connection_kwargs
    url = f"redis://{options['host']}:{options['port']}"
    of = ProcessRecipe.model_validate({**recipe(700).model_dump(), "broker": {"url": url}})
    empty.config_set("maxmemory", 16_000_000)
    with pytest.raises(Refused, match=r"may use 16\.0 MB"):
        require_redis(of)
    assert empty.dbsize() == 0


def test_the_reply_that_is_reckoned_with_is_the_learner_s() -> None:
    assert memory.REPLY > CLAIM_COUNT


def shipping(tmp_path: Path, **changed: Any) -> LearnerRecipe:
    """A run whose weights, 8 MB of them, go through Redis."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    save_file({"a": np.zeros((1000, 1000), np.float32), "b": np.zeros(1_000_000, np.float16)}, model / "m.safetensors")
    (model / "config.json").write_text("{}" * 100)
    plain = recipe(4).model_dump()
    plain["run"] |= {"model": str(model), "directory": str(tmp_path / "runs")}
    for section, values in {"policy": {"backend": "redis"}, **changed}.items():
        plain[section] |= values
    return LearnerRecipe.model_validate(plain)


def test_weights_in_redis_stay_below_the_bound_and_not_far_below(empty: redis_library.Redis, tmp_path: Path) -> None:
    of = shipping(tmp_path)
    keys, size = Keys(of.run.name), memory.version_bytes(of)
    fence = Fence(empty, keys)
    fence.take_over()
    store = policies.writer(of, empty, keys, fence)
    assert isinstance(store, policies.ShippingStore)

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(os.urandom(size))

    for version in range(2 * memory.versions(of)):
        store.write(version, fill)
        with empty.pipeline() as pipe:
            store.point(pipe, version)
            pipe.execute()
        store.lease(f"reader {version}", version)
        if version < memory.versions(of) - 1 or version % 2:  # a pruner may be late by one
            store.prune()
    info: Any = empty.info("memory")
    without = memory.most(of, 0)
    room = memory.most(of) - without - int(memory.ALLOCATOR * memory.IN_FLIGHT)
    assert (memory.versions(of) - 1) * size < info["used_memory"] < room + memory.BASE
    assert info["used_memory_peak"] < memory.most(of) - without + memory.BASE


def test_a_version_is_as_large_as_what_is_published(tmp_path: Path) -> None:
    assert memory.version_bytes(shipping(tmp_path)) == 2_000_000 * 4 + 200
    assert memory.version_bytes(shipping(tmp_path, policy={"backend": "redis", "dtype": "bfloat16"})) == 4_000_200
    adapter = {"lora_rank": 8, "lora_publish": "adapter"}
    assert memory.version_bytes(shipping(tmp_path, learner=adapter)) >= 8 * 2000 * 4
    assert memory.versions(recipe(4)) == 0, "through a directory none are in Redis"


def test_a_run_that_repeats_itself_keeps_every_version_that_a_ticket_may_name(tmp_path: Path) -> None:
    usual, exact = shipping(tmp_path), shipping(tmp_path, run={"deterministic": True})
    unsaved = exact.learner.most_unsaved_steps
    assert memory.versions(usual) == 2 * 2 + 1
    assert memory.versions(exact) == memory.versions(usual) + exact.run.max_staleness + 1 + unsaved + 1 + 3
