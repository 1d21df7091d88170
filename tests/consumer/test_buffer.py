"""Rule W told as stories: what may be trained on now, what is waited for, and what is let go.

A ticket is written `name: min_policy_version`; the learner stands at version v with bound S and B groups a step.
The rule under adversarial play: tests/system/test_flow.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.buffer import Bound, Held, Order, StalenessBuffer, Wait
from tests.consumer.groups import arrival, failed_group, group


def buffer(order: Order, *arrived: str, version: int = 0) -> StalenessBuffer:
    made = StalenessBuffer(order)
    for ticket_id in arrived:
        made.add(arrival(group(ticket_id, version=version)))
    return made


def names(found: list[Held] | Wait) -> list[str] | Wait:
    return found if isinstance(found, Wait) else [held.group.ticket_id for held in found]


def bound(version: int, staleness: int, groups: int = 1, every: int = 1, taken: int = 0) -> Bound:
    return Bound(version, taken, staleness, groups, every)


# -- ready -----------------------------------------------------------------------------------------------------------


def test_ready_takes_the_oldest_that_have_arrived_whatever_is_missing_between_them() -> None:
    shelf = buffer("ready", "d", "b", "c")
    found = shelf.take({"a": 0, "b": 0, "c": 0, "d": 0, "e": 0}, bound(0, staleness=8, groups=2))
    assert names(found) == ["b", "c"]
    assert list(shelf.held) == ["d"]


def test_too_few_for_a_batch_is_a_wait_for_any_of_them() -> None:
    assert buffer("ready", "a").take({"a": 0, "b": 0}, bound(0, 8, groups=2)) == Wait("batch")


def test_a_straggler_with_versions_to_spare_is_not_waited_for() -> None:
    assert names(buffer("ready", "b").take({"late": 0, "b": 1}, bound(1, staleness=3))) == ["b"]


def test_a_straggler_whose_last_chance_is_the_next_batch_is_given_it() -> None:
    """At v = 3, S = 3: after this batch v = 4, and version 0 is beyond the bound."""
    assert buffer("ready", "b").take({"late": 0, "b": 1}, bound(3, staleness=3)) == Wait("ticket", "late")


def test_two_deadlines_that_would_fall_into_one_step_are_seen_two_steps_ahead() -> None:
    """Nothing is due now. But one batch a version can save only one of the two that are due at the next."""
    in_play = {"late": 0, "later": 0, "c": 2}
    assert buffer("ready", "c").take(in_play, bound(2, staleness=3)) == Wait("ticket", "late")
    assert names(buffer("ready", "c").take(in_play, bound(1, staleness=3))) == ["c"]
    assert names(buffer("ready", "c", "late").take(in_play, bound(2, staleness=3))) == ["late"]


def test_once_every_offender_has_arrived_the_learner_goes_on_and_lets_the_excess_go_stale() -> None:
    """Waiting would help nobody: three groups are due and two can be trained in time."""
    in_play = {"a": 0, "b": 0, "c": 0}
    shelf = buffer("ready", "a", "b", "c")
    assert names(shelf.take(in_play, bound(1, staleness=1))) == ["a"]
    gone = shelf.consumed({"b": 0, "c": 0}, bound(2, staleness=1))
    assert [(held.group.ticket_id, verdict) for held, verdict in gone] == [("b", "stale"), ("c", "stale")]
    assert len(shelf) == 0


def test_a_ticket_past_the_bound_is_lost_and_not_waited_for() -> None:
    assert names(buffer("ready", "b", version=5).take({"lost": 0, "b": 5}, bound(5, staleness=3))) == ["b"]


def test_an_offender_that_never_comes_blocks_for_as_long_as_it_is_unsettled() -> None:
    shelf = buffer("ready", "b", "c", "d")
    in_play = {"late": 0, "b": 1, "c": 1, "d": 1}
    assert shelf.take(in_play, bound(2, staleness=2)) == Wait("ticket", "late")
    del in_play["late"]  # settled as failed: its tombstone came
    assert names(shelf.take(in_play, bound(2, staleness=2))) == ["b"]


def test_with_bound_zero_only_the_version_at_hand_is_trained_on() -> None:
    assert names(buffer("ready", "a", "b").take({"a": 0, "b": 0}, bound(0, 0, groups=2))) == ["a", "b"]
    assert buffer("ready", "a", version=0).consumed({"a": 0}, bound(1, 0))[0][1] == "stale"


@pytest.mark.parametrize(
    ("every", "taken", "room"),
    [(1, 0, [0, 2, 4]), (2, 0, [2, 6, 10]), (2, 1, [0, 4, 8]), (3, 0, [4, 10, 16]), (3, 2, [0, 6, 12])],
)
def test_the_room_up_to_a_version_counts_the_batches_still_to_come_at_it(
    every: int, taken: int, room: list[int]
) -> None:
    assert [bound(7, 4, groups=2, every=every, taken=taken).room(ahead) for ahead in range(3)] == room


@pytest.mark.parametrize("every", [2, 3])
def test_publishing_every_few_steps_the_due_ticket_is_waited_for_at_the_last_step_of_its_version(every: int) -> None:
    in_play = {"late": 0, "b": 2}
    for taken in range(every):
        found = buffer("ready", "b").take(in_play, bound(2, staleness=2, every=every, taken=taken))
        assert names(found) == (Wait("ticket", "late") if taken == every - 1 else ["b"])


# -- strict ----------------------------------------------------------------------------------------------------------


def test_strict_takes_tickets_in_their_order_and_waits_for_the_first_that_is_missing() -> None:
    shelf, in_play = buffer("strict", "a", "c"), {"a": 0, "b": 0, "c": 0}
    assert shelf.take(in_play, bound(0, 8, groups=2)) == Wait("ticket", "b")
    shelf.add(arrival(group("b")))
    assert names(shelf.take(in_play, bound(0, 8, groups=2))) == ["a", "b"]


def test_strict_gives_a_verdict_only_where_nothing_before_it_is_open() -> None:
    """So that replacements are numbered alike in every run, whoever was faster."""
    shelf = StalenessBuffer("strict")
    for made in (group("a"), group("c", rewards=(1.0, 1.0)), failed_group("d")):
        shelf.add(arrival(made))
    in_play = dict.fromkeys("abcd", 0)
    assert shelf.consumed(in_play, bound(0, 8, groups=3)) == []
    shelf.add(arrival(group("b", rewards=(0.0, 0.0))))
    gone = shelf.consumed(in_play, bound(0, 8, groups=3))
    assert [(held.group.ticket_id, verdict) for held, verdict in gone] == [
        ("b", "degenerate"), ("c", "degenerate"), ("d", "failed"),
    ]  # fmt: skip


def test_strict_leaves_what_lies_behind_a_full_batch_for_the_version_that_will_see_it() -> None:
    shelf = buffer("strict", "a", "b")
    shelf.add(arrival(group("c", rewards=(0.0, 0.0))))
    assert shelf.consumed(dict.fromkeys("abc", 0), bound(0, 8, groups=2)) == []


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 4), st.integers(1, 3), st.data())
def test_at_depth_equal_to_the_bound_every_deadline_is_tight_and_ready_is_strict(
    staleness: int, groups: int, data: st.DataObject
) -> None:
    """Capacity (S + 1)·B, B tickets a version: `ready` never takes a batch that `strict` would not."""
    version = data.draw(st.integers(staleness, staleness + 3))
    in_play = {f"t{n:02d}": version - staleness + n // groups for n in range((staleness + 1) * groups)}
    arrived = data.draw(st.lists(st.sampled_from(sorted(in_play)), unique=True))
    at = bound(version, staleness, groups)
    ready = names(buffer("ready", *arrived, version=version).take(in_play, at))
    strict = names(buffer("strict", *arrived, version=version).take(in_play, at))
    assert ready == strict or (isinstance(ready, Wait) and isinstance(strict, Wait))


# -- what comes in ---------------------------------------------------------------------------------------------------


def test_a_copy_is_told_from_the_first_and_changes_nothing() -> None:
    shelf = buffer("ready", "a")
    assert not shelf.add(arrival(group("a", rewards=(5.0, 6.0)), b"2-2"))
    assert shelf.held["a"].entry_id == b"1-1"


def test_ready_gives_its_verdicts_at_once_and_keeps_the_good() -> None:
    shelf = StalenessBuffer("ready")
    for made in (group("good", version=9), group("equal", (1.0, 1.0), version=9), failed_group("dead"), group("old")):
        shelf.add(arrival(made))
    in_play = {"missing": 9, "old": 0, "dead": 9, "equal": 9, "good": 9}
    gone = shelf.consumed(in_play, bound(9, staleness=8))
    assert [(held.group.ticket_id, verdict) for held, verdict in gone] == [
        ("old", "stale"), ("dead", "failed"), ("equal", "degenerate"),
    ]  # fmt: skip
    assert list(shelf.held) == ["good"]


def test_a_group_is_as_old_as_its_oldest_token() -> None:
    assert not bound(8, staleness=8).stale(group(version=0))
    assert bound(9, staleness=8).stale(group(version=0))


def test_a_group_of_a_version_that_is_yet_to_come_is_of_another_history() -> None:
    """The run was taken back to an older state, and a generator went on with what it held."""
    shelf = buffer("ready", "a", version=5)
    assert shelf.consumed({"a": 0}, bound(4, staleness=8))[0][1] == "stale"
    shelf = buffer("ready", "a", version=5)
    assert shelf.consumed({"a": 0}, bound(5, staleness=8)) == []
