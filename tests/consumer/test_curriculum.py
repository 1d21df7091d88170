"""Which problem comes next: exact epochs of every part, shares that are never far from the weights, and the books."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from broker.card import PartCard
from consumer.buffer import Held
from consumer.choice import Course, problem_of
from consumer.curriculum import Curriculum
from tests.consumer.desk import FLOW, Desk, ids, publish, trained

PARTS = (PartCard("sums", 5), PartCard("empty", 0, 9.0), PartCard("products", 3, 2.5))
cards = st.lists(st.builds(PartCard, st.just("a"), st.integers(1, 9), st.floats(0.01, 100.0)), min_size=1, max_size=12)


def walk(curriculum: Curriculum, count: int) -> list[int]:
    """The next `count` problems, drawn."""
    draw = curriculum.next(count)
    curriculum.drew(draw)
    return list(draw.problems)


def by_part(parts: list[PartCard], problems: list[int]) -> list[list[int]]:
    ends = np.cumsum([part.train for part in parts])
    return [[p for p in problems if np.searchsorted(ends, p, "right") == i] for i in range(len(parts))]


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 100))
def test_a_task_of_one_part_is_walked_as_ever(seed: int, problems: int, count: int) -> None:
    walked = walk(Curriculum(seed, (PartCard("all", problems),)), count)
    assert walked == [problem_of(seed, n, problems) for n in range(count)]


@given(st.integers(0, 2**32), cards, st.integers(1, 200))
def test_every_part_gives_each_of_its_problems_once_an_epoch(seed: int, parts: list[PartCard], count: int) -> None:
    for part, walked in zip(parts, by_part(parts, walk(Curriculum(seed, parts), count)), strict=True):
        epochs = [walked[n : n + part.train] for n in range(0, len(walked), part.train)]
        *whole, last = epochs or [[]]
        assert all(len(set(epoch)) == part.train for epoch in whole)
        assert len(set(last)) == len(last)


@given(cards, st.integers(1, 400))
def test_no_part_strays_from_its_share_by_a_whole_problem(parts: list[PartCard], count: int) -> None:
    curriculum, total = Curriculum(0, parts), sum(part.weight for part in parts)
    for n in range(1, count + 1):
        walk(curriculum, 1)
        strays = [abs(w.drawn - n * part.weight / total) for w, part in zip(curriculum.walks, parts, strict=True)]
        assert max(strays) < 1 + 1e-6


def test_a_part_without_problems_is_never_asked() -> None:
    assert Counter(problem >= 5 for problem in walk(Curriculum(0, PARTS), 35)) == {False: 10, True: 25}


# -- in the books -----------------------------------------------------------------------------------------------------


def test_the_books_hold_how_far_each_part_was_walked_and_a_restart_goes_on_there(desk: Desk) -> None:
    flow = replace(FLOW, problems=8, parts=PARTS)
    dispatch = desk.opened(flow)
    before = [ticket.problem for ticket in desk.claim()]
    assert before == walk(Curriculum(0, PARTS), 6)
    again = desk.dispatch(replace(flow, capacity=16))
    again.resume(0)
    again.refill()
    assert [*before, *(ticket.problem for ticket in desk.claim())] == walk(Curriculum(0, PARTS), 16)
    assert dispatch.ledger.course.read().drawn == {0: 5, 2: 11}
    assert again.ledger.balance().balanced


def test_books_made_anew_from_a_cut_go_on_from_the_cut(desk: Desk) -> None:
    dispatch = desk.opened()
    cut = dispatch.cuts
    publish(desk, dispatch, 1, 1, trained(desk, dispatch, 0, 1))
    page = cut.of(1)
    assert page is not None
    publish(desk, dispatch, 2, 2, trained(desk, dispatch, 2, 3))
    assert list(dispatch.waiting())[-2:] == ids(8, 9)
    anew = desk.dispatch()
    with anew.ledger.transaction() as pipe:
        anew.ledger.rewrite(pipe, page.pages["train"], anew.tickets(page.pages["train"]))
    assert anew.ledger.course.read().drawn == {0: 8}
    anew.resume(1)
    assert [walk.drawn for walk in anew.issuer.curriculum.walks] == [8]


def test_the_books_hold_how_every_group_did_that_was_used_until_a_checkpoint_has_it(desk: Desk) -> None:
    dispatch = desk.opened(replace(FLOW, course=Course("target")))
    numbered = {ticket.ticket_id: ticket.problem for ticket in desk.claim()}
    first, second, third, *_ = numbered
    bad = desk.answer(second, rewards=(0.0, 0.0))
    dispatch.consume([(bad[0], "degenerate")])
    good = desk.answer(first, third, rewards=(0.0, 1.0, 1.0))
    dispatch.take(good)
    publish(desk, dispatch, 1, 1, [first, third])
    standing = dispatch.ledger.course.read()
    expected = [(numbered[second], 0, 2), (numbered[first], 2, 3), (numbered[third], 2, 3)]
    assert [(o.problem, o.solved, o.attempts) for o in standing.latest] == expected
    assert standing.observed == 3
    dispatch.make_final(list(dispatch.journal), 1, dict(dispatch.entry_ids), 2)  # of a cut between two of them
    standing = dispatch.ledger.course.read()
    assert [o.problem for o in standing.latest] == [numbered[third]]
    assert standing.observed == 3


def test_a_group_that_failed_says_nothing_of_its_problem(desk: Desk) -> None:
    dispatch = desk.opened(replace(FLOW, course=Course("skip")))
    (first, *_) = (ticket.ticket_id for ticket in desk.claim())
    desk.bury(first)
    (arrival,) = desk.arrivals()
    assert arrival.group is not None
    dispatch.consume([(Held(arrival.entry_id, arrival.group), "failed")])
    assert dispatch.ledger.course.read().observed == 0
