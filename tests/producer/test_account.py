"""What a generator tells of its groups, over a real Redis: the texts, the times, and of those that came to nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from broker.audit import Sampling
from broker.audit_log import AuditLog
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.schema import RolloutGroup, Ticket
from broker.settings import BrokerSettings
from monitoring.trail import Trail
from tests.producer.one_generator import OneGenerator
from tests.producer.test_poison import Feverish

TICKETS = [Ticket(f"t{n:010d}p{n:010d}", n, n + 7, 0) for n in range(3)]


@pytest.fixture
def one(redis: redis.Redis, redis_server: EmbeddedServer, keys: Keys, tmp_path: Path, tiny_model: Path) -> OneGenerator:
    made = OneGenerator(redis, keys, tmp_path, tiny_model)
    made.audit = AuditLog.of(BrokerSettings(), redis_server.url, keys, lambda n: made.metrics.audit_lost.inc(n))
    return made


def told(one: OneGenerator) -> dict[str, Sampling]:
    trail = Trail.read(one.client, one.keys)
    assert trail.unreadable == 0
    return {life.ticket_id: life.sampling for life in trail.lives if life.sampling is not None}


def serve(one: OneGenerator, *tickets: Ticket) -> dict[str, RolloutGroup]:
    for ticket in tickets:
        one.issue(ticket)
    return {group.ticket_id: group for group in one.published(len(tickets))}


def test_what_is_told_is_what_travels_and_its_text(one: OneGenerator) -> None:
    before = time.time()
    groups = serve(one, *TICKETS)
    notes = told(one)
    assert groups.keys() == notes.keys()
    for ticket in TICKETS:
        group, note = groups[ticket.ticket_id], notes[ticket.ticket_id]
        assert (note.problem, note.seed, note.min_policy_version) == (ticket.problem, ticket.seed, 0)
        assert (note.generator, note.sample_seconds) == (group.generator, group.sample_seconds)
        assert note.prompt_tokens == len(group.prompt)
        assert "What is " in note.prompt.head
        assert "<|im_start|>" in note.prompt.head, "as the model is given it"
        assert int(note.gold.head) >= 0
        for answer, rollout in zip(note.answers, group.rollouts, strict=True):
            assert (answer.reward, answer.components) == (rollout.reward, rollout.components)
            assert (answer.tokens, answer.truncated) == (len(rollout.tokens), rollout.truncated)
            assert answer.logprob == pytest.approx(rollout.behaviour_logprobs.mean())
            assert [(s.policy_version, s.start, s.end) for s in answer.spans] == [(0, 0, len(rollout.tokens))]
        parts = note.sample_seconds + note.verify_seconds
        assert 0 <= note.wait_seconds <= note.sample_seconds
        assert 0 < parts <= note.hand_seconds < time.time() - before
        assert abs(note.issued_at - before) < 60
    assert one.figure("audit_lost_notes_total") == 0


def test_a_group_that_is_not_fit_for_training_is_told_of_with_its_texts_and_the_reason(one: OneGenerator) -> None:
    one.engine_class = Feverish
    groups, notes = serve(one, *TICKETS), told(one)
    (failed,) = [group for group in groups.values() if group.failed]
    note = notes[failed.ticket_id]
    assert note.failed.head == failed.failed
    assert [answer.logprob is None for answer in note.answers] == [False, True], "the second has no number"
    assert all(answer.tokens for answer in note.answers)


def test_a_ticket_that_cannot_be_served_is_told_of_as_far_as_it_came(one: OneGenerator) -> None:
    nowhere = Ticket("t0000000009p0000099999", 99999, 1, 0)
    serve(one, nowhere)
    note = told(one)[nowhere.ticket_id]
    assert note.failed.head.startswith("no problem 99999")
    assert (note.answers, note.prompt.head) == ((), "")


def test_evaluations_are_not_told_of(one: OneGenerator) -> None:
    serve(one, TICKETS[0], Ticket("e00000000-start-000000", 0, 1, 0, "eval"))
    assert told(one).keys() == {TICKETS[0].ticket_id}


def test_a_log_that_refuses_costs_the_groups_nothing(one: OneGenerator) -> None:
    one.client.set(one.keys.audit, "somebody's")
    groups = serve(one, *TICKETS)
    assert len(groups) == 3
    assert not [group for group in groups.values() if group.failed]
    assert one.figure("audit_lost_notes_total") == 3
