"""Evaluations over a real Redis: issued once, collected whole, settled after their record is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.errors import Fenced
from broker.ledger import Ledger
from broker.schema import RolloutGroup
from broker.streams import Arrival
from consumer.evaluation import Evaluator, Record, eval_id
from tests.consumer.desk import Desk
from tests.consumer.groups import rollout


@pytest.fixture
def records() -> list[Record]:
    return []


def evaluator(desk: Desk, records: list[Record], problems: int = 3) -> Evaluator:
    """A learner's evaluator; a second one is that of a restarted learner."""
    return Evaluator(desk.ledger("eval"), problems, 0, records.append)


def books(desk: Desk) -> Ledger:
    return Ledger(desk.client, desk.keys, "eval")


def answers(desk: Desk, *correct: float, version: int = 5) -> list[Arrival]:
    """Claim what is out; each ticket gets two samples, both right (1), both wrong (0), or one of each (0.5)."""
    for ticket, share in zip(desk.claim(), correct, strict=True):
        made = tuple(
            rollout(
                [1, 2],
                float(n < 2 * share) - 7,
                spans=[(version, 0, 2)],
                truncated=n == 1,
                correct=float(n < 2 * share),
            )
            for n in range(2)
        )
        prompt = made[0].tokens
        desk.publish(RolloutGroup(ticket.ticket_id, "eval", ticket.problem, prompt, made))
    return desk.arrivals()


def test_an_evaluation_asks_for_the_first_held_out_problems_at_its_version_and_once(
    desk: Desk, records: list[Record]
) -> None:
    one = evaluator(desk, records)
    assert one.start(5, "periodic")
    assert not one.start(5, "periodic"), "the same again is not issued"
    tickets = desk.claim()
    assert [t.ticket_id for t in tickets] == [eval_id(5, "periodic", n) for n in range(3)]
    assert [(t.problem, t.min_policy_version, t.kind) for t in tickets] == [(n, 5, "eval") for n in range(3)]
    assert one.start(5, "end"), "another label is another evaluation"
    assert [t.seed for t in desk.claim()] == [t.seed for t in tickets], "paired samples: the same seed for a problem"


def test_the_record_is_written_with_the_last_answer_and_everything_is_settled_then(
    desk: Desk, records: list[Record]
) -> None:
    one = evaluator(desk, records)
    one.start(5, "end")
    *first, last = answers(desk, 1, 0.5, 0, version=6)
    for arrival in first:
        one.add(arrival)
    assert records == []
    assert len(books(desk).balance().unsettled) == 3, "settled whole or not at all"
    one.add(last)
    assert records == [
        {
            "label": "end", "policy_version": 5, "newest_version": 6, "problems": 3, "failed": 0, "samples": 6,
            "pass_at_1": 0.5, "pass_at_1_error": pytest.approx(0.5 / 3**0.5), "pass_at": {"1": 0.5, "2": 2 / 3},
            "majority_at": {"2": 0.0}, "reward": -6.5, "mean_length": 2.0, "truncated_fraction": 0.5, "by": [],
        }
    ]  # fmt: skip
    assert one.running == {}


def test_tasks_and_levels_are_told_apart(desk: Desk, records: list[Record]) -> None:
    labels = [("sums", "easy"), ("sums", "hard"), ("sums", "easy")]
    one = Evaluator(desk.ledger("eval"), 3, 0, records.append, labels)
    one.start(5, "end")
    for arrival in answers(desk, 1, 0.5, 0):
        one.add(arrival)
    by = [(of["task"], of["level"], of["problems"], of["pass_at_1"]) for of in records[0]["by"]]
    assert by == [("sums", "easy", 2, 0.5), ("sums", "hard", 1, 0.5)]
    balance = books(desk).balance()
    assert balance.balanced
    assert balance.verdicts == {"evaluated": 3}
    assert desk.rollouts.pending() == []


def test_without_a_component_called_correct_the_reward_counts(desk: Desk, records: list[Record]) -> None:
    one = evaluator(desk, records, problems=1)
    one.start(0, "start")
    desk.answer(*[eval_id(0, "start", 0)], rewards=(0.25, 1.0))
    for arrival in desk.rollouts.pending():
        one.add(arrival)
    assert records[0]["pass_at_1"] == 0.5


def test_failed_and_unreadable_answers_are_counted_and_do_not_hold_the_evaluation_up(
    desk: Desk, records: list[Record]
) -> None:
    one = evaluator(desk, records)
    one.start(5, "end")
    desk.claim()
    desk.bury(eval_id(5, "end", 0))
    (buried,) = desk.arrivals()
    one.add(buried)
    one.add(desk.send(eval_id(5, "end", 1), b"garbage", "eval"))
    assert records == []
    one.add(desk.send(eval_id(5, "end", 2), b"more garbage", "eval"))
    assert records[0]["failed"] == 3
    assert records[0]["pass_at_1"] is None, "nothing was evaluated, which is not the same as nothing was right"
    assert books(desk).balance().verdicts == {"failed": 3}
    assert [name for name, _ in desk.dead_letters()] == [eval_id(5, "end", n) for n in range(3)]
    assert desk.dead_letters()[0][1] == "delivered too often"


def test_strangers_and_copies_are_set_aside(desk: Desk, records: list[Record]) -> None:
    one = evaluator(desk, records)
    one.start(5, "end")
    first = answers(desk, 1, 1, 1)[0]
    one.add(first)
    one.add(replace(first, entry_id=b"999999999-1"))
    one.add(desk.send("e00000009-end-000000", b"garbage", "eval"))
    assert [name for name, _ in desk.dead_letters()] == [first.ticket_id, "e00000009-end-000000"]
    assert records == []
    assert len(one.running[5, "end"].arrived) == 1


def test_a_restarted_learner_takes_up_an_evaluation_where_it_was(desk: Desk, records: list[Record]) -> None:
    """Answers that the first one had claimed come back as pending; its label and version are in their names."""
    first = evaluator(desk, records)
    first.start(5, "periodic")
    first.start(6, "end")
    for arrival in answers(desk, *[1] * 6)[:4]:
        first.add(arrival)
    second = evaluator(desk, records)
    second.resume()
    assert second.running.keys() == {(5, "periodic"), (6, "end")} - {(r["policy_version"], r["label"]) for r in records}
    for arrival in desk.rollouts.pending():
        second.add(arrival)
    assert sorted((r["policy_version"], r["label"], r["samples"]) for r in records) == [
        (5, "periodic", 6),
        (6, "end", 6),
    ]
    assert books(desk).balance().balanced
    assert desk.dead_letters() == []
    assert not second.start(6, "end"), "it is known to have been issued"


def test_an_evaluation_without_problems_is_none(desk: Desk, records: list[Record]) -> None:
    assert not evaluator(desk, records, problems=0).start(0, "start")
    assert desk.claim() == []


def test_an_older_learner_neither_issues_nor_settles(desk: Desk, records: list[Record]) -> None:
    old = evaluator(desk, records, problems=1)
    old.start(5, "end")
    (arrival,) = answers(desk, 1)
    evaluator(desk, records)
    for write in (lambda: old.start(6, "end"), lambda: old.add(arrival)):
        with pytest.raises(Fenced):
            write()
    assert books(desk).balance().unsettled == {eval_id(5, "end", 0)}


def test_evaluation_is_no_business_of_the_train_ledger(desk: Desk, records: list[Record]) -> None:
    one = evaluator(desk, records)
    one.start(5, "end")
    for arrival in answers(desk, 1, 1, 1):
        one.add(arrival)
    train = Ledger(desk.client, desk.keys).balance()
    assert (train.issued, train.verdicts, train.unsettled) == (0, {}, frozenset())


def test_evaluations_that_nobody_answers_do_not_pile_up(desk: Desk, records: list[Record]) -> None:
    """Memory is bounded: beyond two under way no periodic one begins, and the last one of a run always does."""
    one = evaluator(desk, records)
    assert [one.start(version, "periodic") for version in (1, 2, 3, 4)] == [True, True, False, False]
    assert one.start(5, "end")
    assert len(books(desk).unsettled()) == 3 * 3
    for arrival in answers(desk, *[1] * 9):
        one.add(arrival)
    assert one.start(6, "periodic")
