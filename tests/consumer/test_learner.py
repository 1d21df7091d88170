"""The learner itself, in this process, over a real Redis: how a run begins, ends, waits and takes up again.

Real processes: tests/system/test_pipeline.py. Bit for bit: tests/system/test_synchrony.py.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
import torch
from msgspec.structs import replace

from broker.errors import Refused
from broker.keys import Keys
from broker.schema import RolloutGroup, Ticket, encode_group
from broker.ticket_id import TicketId
from tests.consumer.desk import ids
from tests.consumer.groups import group
from tests.consumer.one_run import Run, mixed
from tests.system.pipeline import wait_until

# How long a test whose failure is a learner that never ends watches it do so.
HANGS = 8.0


@pytest.fixture
def run(redis: redis.Redis, blocking: redis.Redis, keys: Keys, tmp_path: Path) -> Run:
    return Run(redis, blocking, keys, tmp_path)


@pytest.fixture
def steady(redis: redis.Redis, blocking: redis.Redis, tmp_path: Path) -> Run:
    """Another run beside it, to which nothing happens."""
    return Run(redis, blocking, Keys("steady"), tmp_path / "steady")


# -- beginning and end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_trains_its_steps_publishes_them_and_leaves_its_books_closed(run: Run, order: str, every: int) -> None:
    run.learner_settings = {"order": order, "publish_every": every, "checkpoint_every": 2}
    run.evaluate = 2
    learner = run.learner()
    assert run.finish(learner) == "finished"
    balance = learner.dispatch.ledger.balance()
    assert balance.balanced
    assert not balance.unsettled
    assert balance.verdicts["trained"] == 3 * 2
    assert run.desk.policy.newest() == {1: 3, 2: 2}[every], "the last step is published whatever the rhythm"
    assert [line["step"] for line in run.lines("step")] == [1, 2, 3]
    assert [line["eval"]["label"] for line in run.lines("eval")] == ["start", "end"]


@pytest.mark.parametrize(("reward", "outcome"), [(1.0, "solved"), (0.0, "no signal")])
def test_a_run_that_has_nothing_left_to_learn_from_says_which_way(run: Run, reward: float, outcome: str) -> None:
    run.learner_settings = {"max_degenerate_in_a_row": 5}
    learner = run.learner()
    assert run.finish(learner, lambda ticket: group(ticket.ticket_id, (reward, reward))) == outcome
    assert learner.dispatch.ledger.balance().verdicts["degenerate"] >= 5


def test_a_run_that_is_solved_between_two_publications_ends_as_well(run: Run) -> None:
    run.learner_settings = {"max_degenerate_in_a_row": 5, "publish_every": 2}

    def answer(ticket: Ticket) -> RolloutGroup:
        return group(ticket.ticket_id, (1.0, 1.0) if TicketId.parse(ticket.ticket_id).number > 1 else (0.0, 1.0))

    assert run.finish(run.learner(), answer) == "solved"


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_what_the_learner_waits_for_has_a_name(run: Run) -> None:
    learner, first = run.learner(), ids(0)[0]

    def waiting() -> tuple[str, str]:
        reason = learner.metrics.health()["waiting"]
        return reason["reason"], reason["detail"]

    def slowly(ticket: Ticket) -> RolloutGroup:
        if ticket.ticket_id == first:
            wait_until(lambda: waiting() == ("no live generator", first), "nobody is there")
            run.client.hset(run.keys.generators, "hand", time.time() + 60)
            wait_until(lambda: waiting() == ("ticket", first), "somebody is there and slow")
        return mixed(ticket)

    assert run.finish(learner, slowly) == "finished"
    assert waiting() == ("none", "")


@pytest.mark.parametrize(
    "kind",
    ["train", "eval"],
)
def test_in_a_deterministic_run_every_version_that_a_ticket_asks_for_is_kept(run: Run, kind: str) -> None:
    """A generator that comes to it late must still find it, or it would wait for ever."""
    run.run_settings, run.evaluate = {"deterministic": True, "steps": 6}, 1
    learner, kept, gone = run.learner(), list[Ticket](), list[Ticket]()

    def late(ticket: Ticket) -> RolloutGroup | None:
        """Train tickets as late as can be; the first evaluation after everything else."""
        if ticket.kind == "train":
            wait_until(lambda: learner.metrics.health()["waiting"]["detail"] == ticket.ticket_id, "it is waited for")
        asking = [t for t in [*kept, ticket] if t.kind == kind]
        gone.extend(t for t in asking if not run.desk.policy.path(t.min_policy_version).exists())
        if ticket.kind == "eval" and ticket.min_policy_version == 0:
            kept.append(ticket)
            return None
        if ticket.min_policy_version == 6:
            run.desk.publish(replace(mixed(kept.pop()), kind="eval"))
        return mixed(ticket)

    assert run.finish(learner, late) == "finished"
    assert 1 not in run.desk.policy.versions(), "versions that nobody asks for are pruned"
    assert gone == []


# -- taking up again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint_every", [2, 100], ids=["from a checkpoint", "from the beginning"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_crashed_learner_is_followed_by_one_that_ends_up_with_the_very_same_weights(
    run: Run, steady: Run, every: int, checkpoint_every: int
) -> None:
    for each in (run, steady):
        each.learner_settings = {"publish_every": every, "checkpoint_every": checkpoint_every, "learning_rate": 0.01}
        each.learner_settings["tokens_per_micro_batch"] = 1  # sums in the order of the groups: another order shows
        each.run_settings = {"steps": 6}
    first, undisturbed = run.learner(crash_at=3), steady.learner()
    with pytest.raises(InterruptedError):
        run.finish(first)
    assert first.dispatch.ledger.balance().balanced
    second = run.learner()
    assert run.finish(second) == steady.finish(undisturbed) == "finished"
    expected, found = undisturbed.trainer.state_dict(), second.trainer.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert any(
        not torch.equal(tensor, expected[f"model.{name}"]) for name, tensor in run.learner().trainer.snapshot().items()
    )
    balance = second.dispatch.ledger.balance()
    assert balance.verdicts == undisturbed.dispatch.ledger.balance().verdicts
    assert balance.balanced
    assert not balance.unsettled
    assert sorted({line["step"] for line in run.lines("step")}) == [1, 2, 3, 4, 5, 6]


def test_an_evaluation_that_was_half_in_when_the_learner_died_is_completed(run: Run) -> None:
    """Two of its three answers were claimed and not settled; they come back as pending, and count."""
    run.evaluate, run.run_settings = 3, {"steps": 4}

    def keep_one_back(ticket: Ticket) -> RolloutGroup | None:
        return None if ticket.ticket_id.endswith("-000002") else mixed(ticket)

    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=3), keep_one_back)
    run.desk.publish(replace(mixed(run.desk.claims["e00000000-start-000002"].ticket), kind="eval"))
    assert run.finish(run.learner(), seconds=HANGS) == "finished"
    assert run.desk.dead_letters() == []
    assert [line["eval"]["samples"] for line in run.lines("eval")] == [6, 6]


@pytest.mark.parametrize("crash_at", [2, 1])
def test_a_run_in_redis_without_its_checkpoints_is_refused(run: Run, crash_at: int) -> None:
    with pytest.raises(InterruptedError):
        run.finish(run.learner(crash_at=crash_at))
    (run.folder / run.keys.run / "checkpoints").rename(run.folder / "elsewhere")
    with pytest.raises(Refused, match="holds no checkpoint"):
        run.finish(run.learner(), seconds=HANGS)


# -- what arrives ----------------------------------------------------------------------------------------------------


def test_a_copy_of_a_group_that_waits_in_the_buffer_changes_nothing(run: Run) -> None:
    """Its ticket is open and its group is here: the ticket must not be settled as failed by somebody's copy."""
    learner = run.learner()

    def and_a_copy(ticket: Ticket) -> RolloutGroup:
        if ticket.ticket_id == ids(1)[0]:
            payload = encode_group(group(ids(0)[0]))
            run.client.xadd(run.keys.rollouts("train"), {"ticket_id": ids(0)[0], "payload": payload})
        return mixed(ticket)

    assert run.finish(learner, and_a_copy) == "finished"
    balance = learner.dispatch.ledger.balance()
    assert balance.balanced
    assert "failed" not in balance.verdicts
