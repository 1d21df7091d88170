"""What is not a number never leaves a generator, and the generator goes on.

The learner's side of it: tests/consumer/test_poison.py.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from broker.decoding import decode_group
from broker.keys import Keys
from broker.schema import Ints, RolloutGroup, Ticket, VersionSpan, encode_group
from producer.engine import Completion
from producer.rollout import assemble
from producer.tasks.base import Verdict
from producer.transformers_engine import TransformersEngine
from tests.producer.one_generator import OneGenerator

TICKETS = [Ticket(f"t{n:010d}", n, n, 0) for n in range(3)]


class Feverish(TransformersEngine):
    """An engine whose second request comes back with a log-prob that is none."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.requests = itertools.count()

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        completions = await super().sample(prompt, seed, request_id)
        if next(self.requests) == 1:
            completions[1].logprobs[-1] = np.nan
        return completions


@pytest.fixture
def one(redis: redis.Redis, keys: Keys, tmp_path: Path, tiny_model: Path) -> OneGenerator:
    made = OneGenerator(redis, keys, tmp_path, tiny_model)
    for ticket in TICKETS:
        made.issue(ticket)
    return made


def test_an_engine_s_nan_is_published_as_a_tombstone_that_says_so_and_its_neighbours_are_untouched(
    one: OneGenerator,
) -> None:
    one.engine_class = Feverish
    groups = {group.ticket_id: group for group in one.published(3)}
    assert sorted(groups) == [ticket.ticket_id for ticket in TICKETS]
    failed = [group for group in groups.values() if group.failed]
    assert [group.failed for group in failed] == [
        "sampled, and not fit for training: behaviour_logprobs are not finite"
    ]
    assert one.figure("failed_groups_total") == 1
    assert one.figure("rollouts_total") == 4


def test_a_verifier_s_nan_costs_its_completion_the_reward_and_is_counted(
    redis: redis.Redis, keys: Keys, tmp_path: Path, tiny_model: Path
) -> None:
    one = OneGenerator(redis, keys, tmp_path, tiny_model, "tests.producer.poison:not_a_number")
    one.issue(TICKETS[0])
    (group,) = one.published(1)
    assert not group.failed
    assert [(r.reward, r.components) for r in group.rollouts] == [(0.0, {"failed": 1.0})] * 2
    assert one.figure("reward_component_total", component="failed") == 2


# -- what assemble takes for unfit ------------------------------------------------------------------------------------


def completion(logprob: float = -1.0, tokens: int = 1) -> Completion:
    ids, logprobs = np.arange(tokens, dtype=np.int32), np.full(tokens, logprob, np.float32)
    return Completion(ids, logprobs, (VersionSpan(0, 0, tokens),), False)


def assembled(verdict: Verdict, *completions: Completion) -> RolloutGroup:
    prompt = np.array([1], np.int32)
    verdicts = [verdict] * len(completions)
    return assemble(TICKETS[0], prompt, completions, verdicts, generator="one", sample_seconds=0.1)


def test_a_sound_group_is_left_as_it_is() -> None:
    group = assembled(Verdict(1.0, {"correct": 1.0}), completion(), completion())
    assert not group.failed
    assert [r.reward for r in group.rollouts] == [1.0, 1.0]
    assert group.sample_seconds == 0.1


@pytest.mark.parametrize(
    ("verdict", "made", "reason"),
    [
        (Verdict(1.0), completion(np.nan), "behaviour_logprobs are not finite"),
        (Verdict(1.0), completion(-np.inf), "behaviour_logprobs are not finite"),
        (Verdict(1.0), completion(0.5), "behaviour_logprobs out of range"),
        (Verdict(1.0), completion(tokens=0), "spans do not cover the tokens"),
        (Verdict(np.nan), completion(), "rollout 0, reward: out of range, or not finite"),
        (Verdict(1e300), completion(), "rollout 0, reward: out of range, or not finite"),
        (Verdict(1.0, {"correct": np.inf}), completion(), "rollout 0, components: out of range, or not finite"),
        (Verdict(1.0, {"\ud800": 1.0}), completion(), "'utf-8' codec can't encode character"),
        (Verdict(1.0), replace(completion(), spans=()), "tokens, behaviour_logprobs and spans are not of one length"),
    ],
)
def test_what_the_learner_could_not_read_becomes_the_reason_why(
    verdict: Verdict, made: Completion, reason: str
) -> None:
    group = assembled(verdict, completion(), made)
    assert group.failed.startswith(f"sampled, and not fit for training: {reason}")
    assert group.rollouts == ()
    assert decode_group(encode_group(group)).ticket_id == TICKETS[0].ticket_id
