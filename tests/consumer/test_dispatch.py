"""Dispatch over a real Redis: what tickets ask for, where their credit comes from, and what cannot be used.

What is committed, and who may write: test_dispatch_commit.py. Adversarial play with time: tests/system/test_flow.py.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from msgspec import structs

from broker.ledger import Verdict
from broker.schema import encode_group
from consumer.buffer import Held
from consumer.choice import problem_of
from consumer.tickets import seed_of
from tests.consumer.desk import FLOW, Desk, ids, publish, trained
from tests.consumer.groups import group

# -- tickets ---------------------------------------------------------------------------------------------------------


def test_the_first_tickets_fill_the_capacity_in_order_and_ask_for_version_zero(desk: Desk) -> None:
    dispatch, tickets = desk.opened(), desk.claim()
    assert [t.ticket_id for t in tickets] == ids(*range(6)) == list(dispatch.waiting())
    assert {t.min_policy_version for t in tickets} == {0} == set(dispatch.waiting().values())
    assert [t.seed for t in tickets] == [seed_of(0, n) for n in range(6)]
    assert [t.problem for t in tickets] == [problem_of(0, n, 7) for n in range(6)]
    assert desk.policy.newest() == 0
    assert dispatch.ledger.balance().balanced


def test_each_problem_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    epochs = [[problem_of(3, n, 50) for n in range(e * 50, e * 50 + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [problem_of(4, n, 50) for n in range(50)] != epochs[0]


def test_what_a_ticket_asks_for_is_a_function_of_run_and_number_for_ever() -> None:
    """A resumed run issues old tickets again as they were."""
    assert [seed_of(0, 0), seed_of(0, 1), seed_of(7, 0)] == [1136261819, 221381403, 150693778]
    assert [problem_of(0, n, 7) for n in range(7)] == [2, 4, 3, 6, 5, 0, 1]
    drawn = {seed_of(run, n) for run in range(20) for n in range(200)}
    assert len(drawn) > 3990
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert sorted(ids(9, 10, 100)) == ids(9, 10, 100), "ids sort in order of issue"


# -- credit ----------------------------------------------------------------------------------------------------------


def test_neither_taking_a_batch_nor_an_unpublished_step_frees_credit_but_publication_does(desk: Desk) -> None:
    dispatch = desk.opened()
    first = trained(desk, dispatch, 0, 1)
    assert desk.claim() == []
    dispatch.commit(1, 0, first, publish=False)
    second = trained(desk, dispatch, 2, 3)
    assert desk.claim() == []
    assert len(dispatch.in_play) == FLOW.capacity, "two batches trained, and still their credit is held"
    publish(desk, dispatch, 2, 1, second)
    fresh = desk.claim()
    assert [t.ticket_id for t in fresh] == ids(6, 7, 8, 9)
    assert {t.min_policy_version for t in fresh} == {1}, "the version whose publication freed the credit"
    assert list(dispatch.in_play) == ids(4, 5, 6, 7, 8, 9)
    assert dispatch.ledger.balance().balanced, "trained groups stay unsettled until a checkpoint holds them"


@pytest.mark.parametrize("verdict", ["degenerate", "stale", "failed"])
def test_a_verdict_without_training_is_final_at_once_and_replaced_at_the_present_version(
    desk: Desk, verdict: Verdict
) -> None:
    dispatch = desk.opened()
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    desk.claim()
    why = "the engine broke" if verdict == "failed" else ""
    gone = [(replace(held, group=structs.replace(held.group, failed=why)), verdict) for held in desk.answer(*ids(3, 5))]
    dispatch.consume(gone)
    replacements = desk.claim()
    assert [(t.ticket_id, t.min_policy_version) for t in replacements] == [(t, 1) for t in ids(8, 9)]
    assert list(dispatch.waiting()) == ids(2, 4, 6, 7, 8, 9)
    balance = dispatch.ledger.balance()
    assert balance.balanced
    assert balance.verdicts == {verdict: 2}
    letters = [(ticket_id, why) for ticket_id in ids(3, 5)] if why else []
    assert desk.dead_letters() == letters, "what failed leaves a line with its reason, and nothing else does"
    assert desk.rollouts.pending()[-1].ticket_id == ids(1)[0], "only the trained ones are still in the stream"


def test_no_verdicts_are_no_transaction(desk: Desk) -> None:
    dispatch = desk.opened()
    before = desk.dump()
    dispatch.consume([])
    assert desk.dump() == before


@pytest.mark.parametrize("seed", range(6))
def test_credit_in_play_never_exceeds_capacity_and_the_run_gets_just_the_groups_it_needs(desk: Desk, seed: int) -> None:
    """Whatever the verdicts, and however many steps a version takes."""
    luck = random.Random(seed)
    dispatch = desk.opened(replace(FLOW, total_groups=16))
    step, version, pending = 0, 0, list[Held]()
    while step < 8:
        pending += desk.answer(*[t.ticket_id for t in desk.claim()])
        gone = [held for held in pending if luck.random() < 0.3]
        dispatch.consume([(held, luck.choice(["degenerate", "failed"])) for held in gone])
        pending = [held for held in pending if held not in gone]
        if len(pending) >= 2:
            batch, pending, step = pending[:2], pending[2:], step + 1
            dispatch.take(batch)
            now = step == 8 or step % 3 == 0 or luck.random() < 0.5
            version += now
            desk.upload(version)
            dispatch.commit(step, version, [held.group.ticket_id for held in batch], publish=now)
        assert len(dispatch.in_play) <= FLOW.capacity
        assert dispatch.ledger.balance().balanced
    assert dispatch.trained == 16
    assert list(dispatch.waiting()) == [], "no ticket was issued that the run had no use for"
    assert desk.claim() == []


def test_when_the_number_of_steps_is_raised_credit_is_refilled_at_the_present_version(desk: Desk) -> None:
    dispatch = desk.opened(replace(FLOW, total_groups=2))
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    dispatch.refill()
    assert desk.claim() == []
    longer = desk.dispatch()
    longer.resume(1)
    longer.refill()
    assert [(t.ticket_id, t.min_policy_version) for t in desk.claim()] == [(t, 1) for t in ids(*range(2, 8))]


# -- what cannot be used ---------------------------------------------------------------------------------------------


def test_a_malformed_answer_settles_its_ticket_as_failed_and_is_kept_with_its_reason(desk: Desk) -> None:
    dispatch = desk.opened()
    desk.claim()
    arrival = desk.send(ids(3)[0], b"\x93garbage")
    dispatch.refuse(arrival, arrival.malformed)
    assert ids(3)[0] not in dispatch.in_play
    assert [t.ticket_id for t in desk.claim()] == ids(6)
    ((ticket_id, reason),) = desk.dead_letters()
    assert ticket_id == ids(3)[0]
    assert "msgpack" in reason
    assert dispatch.ledger.balance().verdicts == {"failed": 1}
    assert desk.rollouts.pending() == []


def test_a_stranger_s_group_is_set_aside_and_settles_nothing(desk: Desk) -> None:
    dispatch = desk.opened()
    for ticket_id in ("t9999999999", "nobody"):
        dispatch.refuse(desk.send(ticket_id, encode_group(group(ticket_id))), "no such ticket")
    assert [name for name, _ in desk.dead_letters()] == ["t9999999999", "nobody"]
    assert dispatch.issuer.issued == 6
    assert dispatch.ledger.balance().balanced
    assert desk.rollouts.pending() == []


def test_a_copy_of_what_is_being_trained_on_is_set_aside_and_settles_nothing(desk: Desk) -> None:
    dispatch = desk.opened()
    trained(desk, dispatch, 0, 1)
    dispatch.refuse(desk.send(ids(0)[0], encode_group(group(ids(0)[0]))), "a copy")
    assert len(dispatch.in_play) == 6
    assert desk.claim() == []
    assert dispatch.ledger.balance().balanced
