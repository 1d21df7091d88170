"""What Dispatch commits over a real Redis: all of a MULTI or nothing of it, by the newest learner alone, for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from broker.errors import Fenced
from tests.consumer.desk import Desk, ids, publish, trained

# -- one MULTI -------------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_uploaded_is_not_committed_and_can_be_tried_again(desk: Desk) -> None:
    dispatch = desk.opened()
    batch = trained(desk, dispatch, 0, 1)
    before, in_play = desk.dump(), dict(dispatch.in_play)
    with pytest.raises(FileNotFoundError):
        dispatch.commit(1, 1, batch, publish=True)
    assert desk.dump() == before
    assert (dispatch.version, dispatch.trained, dispatch.journal, dispatch.in_play) == (0, 0, [], in_play)
    publish(desk, dispatch, 1, 1, batch)
    assert desk.policy.newest() == 1
    assert len(desk.claim()) == 2


def test_a_commit_that_redis_has_no_memory_for_is_refused_whole(desk: Desk) -> None:
    dispatch = desk.opened()
    batch = trained(desk, dispatch, 0, 1)
    desk.upload(1)
    before = desk.dump()
    try:
        desk.client.config_set("maxmemory", 1)
        with pytest.raises(redis.RedisError):
            dispatch.commit(1, 1, batch, publish=True)
    finally:
        desk.client.config_set("maxmemory", 0)
    assert desk.dump() == before
    assert dispatch.version == 0
    dispatch.commit(1, 1, batch, publish=True)
    assert dispatch.ledger.count("step") == 1


def test_only_the_newest_learner_writes_and_an_older_one_changes_nothing(desk: Desk) -> None:
    old = desk.opened()
    publish(desk, old, 1, 1, trained(desk, old, 0, 1))
    batch, others = trained(desk, old, 2, 3), desk.answer(*ids(4))
    malformed = desk.send(ids(5)[0], b"garbage")
    desk.upload(2)
    new = desk.dispatch()
    before = desk.dump()
    writes: list[Callable[[], None]] = [
        lambda: old.commit(2, 2, batch, publish=True),
        lambda: old.consume([(others[0], "degenerate")]),
        lambda: old.refuse(malformed, "garbage"),
        lambda: old.make_final(old.journal, 1, old.entry_ids, 0),
        lambda: old.open(0),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            write()
    assert desk.dump() == before
    new.resume(1)
    assert list(new.waiting()) == ids(*range(2, 8)), "nothing was committed: the batch is to be had again"


def test_a_learner_that_takes_over_in_the_middle_of_a_transaction_wins(desk: Desk) -> None:
    dispatch = desk.opened()

    def write() -> None:
        with dispatch.ledger.transaction() as pipe:
            dispatch.ledger.mark(pipe, "step", "77")
            desk.ledger()

    with pytest.raises(Fenced):
        write()
    assert dispatch.ledger.count("step") == 0


# -- durability ------------------------------------------------------------------------------------------------------


def test_trained_becomes_final_with_the_checkpoint_and_not_before(desk: Desk) -> None:
    dispatch = desk.opened()
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    publish(desk, dispatch, 2, 2, trained(desk, dispatch, 2, 3))
    assert dispatch.ledger.balance().verdicts == {}
    assert len(desk.rollouts.pending()) == 4
    dispatch.make_final(list(dispatch.journal), 1, dict(dispatch.entry_ids), 0)
    balance = dispatch.ledger.balance()
    assert balance.balanced
    assert balance.verdicts == {"trained": 4}
    assert dispatch.ledger.entries() == dispatch.journal == []
    assert desk.rollouts.pending() == []
    assert dispatch.ledger.count("sequence") == 1
    assert dispatch.entry_ids == {}


def test_a_settlement_that_was_repeated_counts_once(desk: Desk) -> None:
    """A learner killed between checkpoint and settlement settles; one killed after it finds nothing left to settle."""
    dispatch = desk.opened()
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    entries, entry_ids = list(dispatch.journal), dict(dispatch.entry_ids)
    again = desk.dispatch()
    again.make_final(entries, 1, entry_ids, 0)
    again.resume(1)
    assert again.trained == 2
    assert again.journal == []
    assert again.ledger.balance().balanced


def test_a_checkpoint_between_two_publications_is_refused(desk: Desk) -> None:
    dispatch = desk.opened()
    dispatch.commit(1, 0, trained(desk, dispatch, 0, 1), publish=False)
    for entries in (list(dispatch.journal), []):
        with pytest.raises(ValueError, match="published step"):
            dispatch.make_final(entries, 1, dict(dispatch.entry_ids), 0)


def test_a_restarted_dispatch_reads_from_the_books_what_the_first_one_knew(desk: Desk) -> None:
    """Published and unpublished steps, settled groups, tickets out: credit and order are as they were."""
    first = desk.opened()
    publish(desk, first, 1, 1, trained(desk, first, 0, 1))
    first.consume([(held, "degenerate") for held in desk.answer(*ids(2))])
    first.commit(2, 1, trained(desk, first, 3, 4), publish=False)
    second = desk.dispatch()
    second.resume(1)
    for name in ("version", "trained", "in_play", "taken", "journal"):
        assert getattr(second, name) == getattr(first, name), name
    second.refill()
    assert second.issuer.issued == first.issuer.issued, "credit of an unpublished step is still held"
