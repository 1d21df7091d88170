"""What the learner tells of the groups that it used up, in a run of its own, over a real Redis."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from broker.audit import Use, decode_note
from broker.audit_log import AuditLog
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.schema import RolloutGroup, Ticket
from broker.settings import BrokerSettings
from broker.ticket_id import TicketId
from monitoring.trail import Life, Trail
from tests.consumer.groups import failed_group
from tests.consumer.one_run import Run, mixed


@pytest.fixture
def run(redis: redis.Redis, blocking: redis.Redis, redis_server: EmbeddedServer, keys: Keys, tmp_path: Path) -> Run:
    made = Run(redis, blocking, keys, tmp_path)
    made.audit = lambda: AuditLog.of(BrokerSettings(), redis_server.url, keys)
    return made


def lives(run: Run) -> dict[str, Life]:
    trail = Trail.read(run.client, run.keys)
    assert trail.unreadable == 0
    return {life.ticket_id: life for life in trail.lives}


def uses(run: Run) -> list[Use]:
    return [life.use for life in lives(run).values() if life.use is not None]


def test_every_verdict_is_told_of_once_it_is_in_the_books(run: Run) -> None:
    broken, dead = 4, 7  # every third is degenerate beside these

    def answer(ticket: Ticket) -> RolloutGroup:
        number = TicketId.parse(ticket.ticket_id).number
        if number == dead:
            return replace(failed_group(ticket.ticket_id, "delivered 3 times"), kind="train", generator="g" * 256)
        made = replace(mixed(ticket), generator="host-1", sample_seconds=number + 0.5)
        if number == broken:
            run.client.xack(run.keys.tickets("train"), "generators", run.desk.claims[ticket.ticket_id].entry_id)
            run.client.xdel(run.keys.tickets("train"), run.desk.claims[ticket.ticket_id].entry_id)
            run.client.xadd(run.keys.rollouts("train"), {"ticket_id": ticket.ticket_id, "payload": b"\x80"})
        return made

    learner = run.learner()
    assert run.finish(learner, answer) == "finished"
    found = uses(run)
    verdicts = learner.dispatch.ledger.verdicts()
    assert {v: sum(use.verdict == v for use in found) for v in verdicts} == verdicts
    by_number = {TicketId.parse(use.ticket_id).number: use for use in found}
    assert (by_number[dead].reason, by_number[dead].staleness) == ("delivered 3 times", None)
    assert by_number[broken].verdict == "failed"
    assert by_number[broken].reason
    for number, use in by_number.items():
        if use.verdict in ("trained", "degenerate"):
            assert (use.generator, use.sample_seconds) == ("host-1", number + 0.5)
            assert len(use.rollouts) == 2
        if use.verdict == "degenerate":
            assert [share.advantage for share in use.rollouts] == [None, None]
    trained = [use for use in found if use.verdict == "trained"]
    assert sorted(use.step for use in trained) == [1, 1, 2, 2, 3, 3]
    assert {(use.step, use.version) for use in trained} == {(1, 0), (2, 1), (3, 2)}
    assert {tuple(share.advantage for share in use.rollouts) for use in trained} == {(-1.0, 1.0)}


def test_what_is_stale_says_how_old_it_is_and_what_is_allowed(run: Run) -> None:
    """A generator that answers with weights much older than its ticket asks for."""
    run.run_settings = {"max_staleness": 2, "steps": 6}
    run.learner_settings = {"order": "ready", "pipeline_depth": 1}

    def old(ticket: Ticket) -> RolloutGroup:
        number = TicketId.parse(ticket.ticket_id).number
        made = mixed(ticket)
        if number != 9:
            return made
        spans = tuple(span._replace(policy_version=0) for span in made.rollouts[0].spans)
        return replace(made, rollouts=(replace(made.rollouts[0], spans=spans), *made.rollouts[1:]))

    assert run.finish(run.learner(), old) == "finished"
    (use,) = [use for use in uses(run) if use.verdict == "stale"]
    assert use.staleness == use.version > 2
    assert use.reason == f"its oldest token is of version 0, {use.version} versions old, and 2 are allowed"
    assert len(use.rollouts) == 2


def test_steps_that_a_restart_repeats_are_not_told_of_again_but_one_that_was_never_committed_is(run: Run) -> None:
    run.run_settings, run.learner_settings = {"steps": 6}, {"checkpoint_every": 100}
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=4))
    assert run.finish(run.learner()) == "finished"
    entries: Any = run.client.xrange(run.keys.audit)
    notes = [decode_note(fields[b"payload"]) for _, fields in entries]
    steps = Counter(note.step for note in notes if isinstance(note, Use) and note.verdict == "trained")
    assert steps == {1: 2, 2: 2, 3: 2, 4: 4, 5: 2, 6: 2}


def test_a_log_that_refuses_costs_the_run_nothing(run: Run) -> None:
    run.client.set(run.keys.audit, "somebody's")
    learner = run.learner()
    assert run.finish(learner) == "finished"
    assert learner.dispatch.ledger.balance().balanced
    assert learner.audit.lost >= 6
