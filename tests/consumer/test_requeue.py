"""Problems of groups that failed, issued again because somebody asked: once, before the next regular tickets.

What asks: tests/monitoring/test_requeue.py. The learner reads the list, and never adds to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library
import structlog
from msgspec import structs

from broker.connection import connect
from broker.embedded import EmbeddedServer
from broker.errors import Fenced
from broker.keys import Keys
from broker.patience import Patience
from broker.schema import RolloutGroup, Ticket, tombstone
from broker.settings import BrokerSettings
from broker.ticket_id import TicketId
from consumer.choice import problem_of
from consumer.dispatch import Dispatch
from consumer.tickets import seed_of
from monitoring.requeue import requeue
from tests.consumer.desk import FLOW, Desk, ids, publish, trained
from tests.consumer.groups import group
from tests.consumer.one_run import Run
from tests.consumer.test_recovery import run_on, take_up
from tests.faults import Faulty, Proxy, once
from tests.system.pipeline import wait_until


def again(number: int, origin: int) -> str:
    """Number `number`, with the problem at position `origin` of the walk."""
    return str(TicketId(number, problem_of(FLOW.seed, origin, FLOW.problems)))


def ask_for(desk: Desk, *ticket_ids: str) -> None:
    desk.client.rpush(desk.keys.requeue, *ticket_ids)


def asked_for(desk: Desk) -> list[str]:
    raw: Any = desk.client.lrange(desk.keys.requeue, 0, -1)
    return [ticket_id.decode() for ticket_id in raw]


def settle(desk: Desk, dispatch: Dispatch, *ticket_ids: str) -> None:
    """As degenerate: each frees the credit of one ticket."""
    dispatch.consume([(held, "degenerate") for held in desk.answer(*ticket_ids)])


# -- one ticket -------------------------------------------------------------------------------------------------------


def test_a_ticket_issued_again_has_the_old_problem_and_a_number_and_seed_of_its_own(desk: Desk) -> None:
    dispatch = desk.opened()
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    desk.claim()
    ask_for(desk, *ids(3))
    settle(desk, dispatch, *ids(4, 5))
    (repeated, regular) = desk.claim()
    assert (repeated.ticket_id, regular.ticket_id) == (again(8, 3), again(9, 8))
    assert repeated == Ticket(again(8, 3), problem_of(0, 3, FLOW.problems), seed_of(0, 8), 1)
    assert regular.problem == problem_of(0, 8, FLOW.problems), "a repetition takes no position of the epoch"
    assert list(dispatch.waiting()) == [*ids(2, 3, 6, 7), again(8, 3), again(9, 8)]
    assert asked_for(desk) == []
    assert dispatch.issuer.issued == dispatch.ledger.balance().issued == 10
    assert dispatch.ledger.balance().balanced


def test_one_that_fails_again_and_is_asked_for_again_still_has_the_first_one_s_problem(desk: Desk) -> None:
    dispatch = desk.opened()
    ask_for(desk, *ids(1))
    settle(desk, dispatch, *ids(0))
    ask_for(desk, again(6, 1))
    settle(desk, dispatch, again(6, 1))
    (ticket,) = desk.claim()
    assert (ticket.ticket_id, ticket.problem) == (again(7, 1), problem_of(0, 1, FLOW.problems))


def by_a_verdict(desk: Desk, dispatch: Dispatch) -> None:
    settle(desk, dispatch, *ids(4))


def by_a_refusal(desk: Desk, dispatch: Dispatch) -> None:
    desk.bury(*ids(4))
    (arrival,) = desk.arrivals()
    dispatch.refuse(arrival, "cannot be read")


def by_a_publication(desk: Desk, dispatch: Dispatch) -> None:
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 4))


def by_a_restart(desk: Desk, dispatch: Dispatch) -> None:
    longer = desk.dispatch(replace(FLOW, capacity=FLOW.capacity + 1))
    longer.resume(0)
    longer.refill()


WAYS: list[Callable[[Desk, Dispatch], None]] = [by_a_verdict, by_a_refusal, by_a_publication, by_a_restart]


@pytest.mark.parametrize("free", WAYS)
def test_wherever_credit_is_freed_what_was_asked_for_comes_first(
    desk: Desk, free: Callable[[Desk, Dispatch], None]
) -> None:
    dispatch = desk.opened()
    desk.claim()
    ask_for(desk, *ids(2, 3))
    free(desk, dispatch)
    assert [ticket.ticket_id for ticket in desk.claim()] == [again(6, 2)]
    assert asked_for(desk) == ids(3), "and the next one with the next credit"
    assert dispatch.ledger.balance().balanced


def test_without_credit_nothing_is_issued_and_a_run_gets_no_more_groups_than_it_needs(desk: Desk) -> None:
    dispatch = desk.opened(replace(FLOW, total_groups=6))
    ask_for(desk, *ids(0))
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    dispatch.refill()
    assert (desk.claim(), asked_for(desk)) == ([], ids(0))
    longer = desk.dispatch(replace(FLOW, total_groups=8))
    longer.resume(1)
    longer.refill()
    assert [ticket.ticket_id for ticket in desk.claim()] == [again(6, 0), again(7, 6)]


def test_what_never_was_a_ticket_is_named_in_the_log_and_costs_nobody_a_ticket(desk: Desk) -> None:
    dispatch = desk.opened()
    nonsense = ["nonsense", "t9999999999p0000000001", str(TicketId(2, 7)), "e00000000-end-000001", *ids(6), "\x00"]
    ask_for(desk, *nonsense, *ids(5))
    with structlog.testing.capture_logs() as lines:
        settle(desk, dispatch, *ids(*range(6)))
    assert [line["ticket"] for line in lines] == nonsense
    assert [ticket.ticket_id for ticket in desk.claim()] == ids(*range(6, 12))
    assert asked_for(desk) == ids(5)


# -- exactly once -----------------------------------------------------------------------------------------------------


def test_it_costs_one_command_for_each_transaction_that_issues_and_none_for_others(desk: Desk) -> None:
    def looks() -> int:
        statistics: Any = desk.client.info("commandstats")
        return int(statistics.get("cmdstat_lrange", {"calls": 0})["calls"])

    dispatch = desk.opened()
    before = looks()
    settle(desk, dispatch, *ids(0, 1, 2))
    assert looks() == before + 1
    dispatch.commit(1, 0, trained(desk, dispatch, 3, 4), publish=False)
    dispatch.refill()
    dispatch.consume([])
    assert looks() == before + 1


NEVER = once(b"never sent")
FAULTS = {"the request": (once(b"EXEC"), NEVER), "the answer": (NEVER, once(b"EXEC"))}


@pytest.mark.parametrize("lost", FAULTS)
def test_a_transaction_that_is_tried_again_issues_it_once(
    redis: redis_library.Redis, redis_server: EmbeddedServer, keys: Keys, tmp_path: Path, lost: str
) -> None:
    patience = Patience(30.0)
    with Proxy(redis_server.port) as proxy, connect(BrokerSettings(), proxy.url, patience=patience) as client:
        desk = Desk(client, keys, tmp_path, patience)
        dispatch = desk.opened()
        dispatch.ledger.fence.patience = patience
        ask_for(desk, *ids(1, 2, 3))
        batch = desk.answer(*ids(0))
        proxy.before, proxy.after = FAULTS[lost]
        dispatch.consume([(batch[0], "degenerate")])
        assert list(dispatch.waiting())[-1] == again(6, 1)
        assert asked_for(desk) == ids(2, 3)
        assert dispatch.ledger.balance().balanced


def test_a_learner_that_dies_before_its_transaction_leaves_it_to_the_next_one(desk: Desk) -> None:
    """Or is fenced: it has read the list, and what it read is still there."""
    old = desk.opened()
    ask_for(desk, *ids(1))
    batch = desk.answer(*ids(0))
    new = desk.dispatch()
    with pytest.raises(Fenced):
        old.consume([(batch[0], "degenerate")])
    assert asked_for(desk) == ids(1)
    new.resume(0)
    new.consume([(batch[0], "degenerate")])
    assert [ticket.ticket_id for ticket in desk.claim()] == [again(6, 1)]
    assert asked_for(desk) == []


def test_a_restarted_dispatch_knows_it_and_would_issue_it_as_it_was(desk: Desk) -> None:
    first = desk.opened()
    ask_for(desk, *ids(1))
    settle(desk, first, *ids(0))
    (ticket,) = desk.claim()
    second = desk.dispatch()
    second.resume(0)
    assert list(second.in_play) == list(first.in_play) == [*ids(1, 2, 3, 4, 5), again(6, 1)]
    assert second.tickets(first.ledger.cut().pages["train"])[-1] == ticket


# -- a whole run ------------------------------------------------------------------------------------------------------

(VICTIM,) = ids(1)


class Mended:
    """A generator that fails on one ticket; before it answers the next, somebody asks for that problem again."""

    def __init__(self, run: Run) -> None:
        self.run, self.tickets = run, list[Ticket]()

    def __call__(self, ticket: Ticket) -> RolloutGroup:
        if ticket.kind == "train":
            self.tickets.append(ticket)
        if ticket.ticket_id == VICTIM:
            return tombstone(ticket, "the engine has a fever")
        if ticket.ticket_id == ids(2)[0]:
            wait_until(self.run.desk.dead_letters, "it is settled as failed", 10)
            requeue(self.run.client, self.run.keys, [VICTIM])
        return structs.replace(group(ticket.ticket_id, (0.0, 1.0), ticket.min_policy_version), problem=ticket.problem)

    @property
    def repeated(self) -> list[Ticket]:
        """Every time that it was asked of a generator: the first ticket that is not the next one of the walk."""
        out_of_turn = [t for t in self.tickets if t.ticket_id not in ids(TicketId.parse(t.ticket_id).number)]
        first = min(ticket.ticket_id for ticket in out_of_turn)
        return [ticket for ticket in out_of_turn if ticket.ticket_id == first]


@pytest.mark.parametrize("order", ["ready", "strict"])
def test_a_problem_that_failed_is_asked_for_again_and_trained(
    redis: redis_library.Redis, blocking: redis_library.Redis, keys: Keys, tmp_path: Path, order: str
) -> None:
    run = Run(redis, blocking, keys, tmp_path, {"order": order}, {"steps": 6})
    learner, answer = run.learner(), Mended(run)
    assert run.finish(learner, answer) == "finished"
    (repeated,) = answer.repeated
    assert repeated.problem == problem_of(0, 1, 7)
    asked = Counter(ticket.problem for ticket in answer.tickets)
    walked = Counter(problem_of(0, n, 7) for n in range(12))
    assert asked - walked == {problem_of(0, 1, 7): 1}, "the one that failed, and no other, once more"
    assert walked - asked == {}, "and the epochs have lost nothing by it"
    balance = learner.dispatch.ledger.balance()
    assert balance.balanced
    assert not balance.unsettled
    assert (balance.issued, balance.verdicts) == (13, {"trained": 12, "failed": 1}), (
        "one ticket more, for one that failed"
    )
    assert run.desk.dead_letters() == []
    assert asked_for(run.desk) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Faulty]:
    with Faulty(tmp_path / "redis") as server:
        yield server


def test_redis_loses_everything_and_an_open_one_is_issued_again_with_the_same_problem(
    server: Faulty, tmp_path: Path
) -> None:
    run = run_on(server, "run", tmp_path / "run", deterministic=False, max_staleness=8)
    answer = Mended(run)
    learner = run.learner(crash_at=4)
    with pytest.raises(InterruptedError):
        run.finish(learner, answer)
    (before,) = answer.repeated
    assert before.ticket_id in learner.dispatch.in_play
    server.lose_all()
    learner = take_up(run, run.learner(), answer)
    _, after = answer.repeated
    assert after == before
    balance = learner.dispatch.ledger.balance()
    assert balance.balanced
    assert not balance.unsettled
    assert balance.verdicts == {"trained": 16, "failed": 1}
