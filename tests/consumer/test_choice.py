"""Curricula that go by how groups did: who rests and for how long, who is drawn how often, and that it all comes back.

A course is driven as dispatch drives it: tickets out, groups back in any order, a commit now and then.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.card import PartCard
from broker.coursebook import Observation, Standing
from broker.errors import Malformed
from consumer.choice import Course
from consumer.curriculum import Curriculum, Draw
from consumer.history import History, Memory, Record

SKIP, TARGET = Course("skip", longest_rest=4), Course("target")
ATTEMPTS = 8
courses = st.sampled_from([Course(), SKIP, TARGET, Course("target", explore=0.0), Course("target", explore=1.0)])
moves = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)  # answered, issued
cards = st.lists(st.builds(PartCard, st.just("a"), st.integers(1, 9), st.floats(0.1, 10.0)), min_size=1, max_size=4)


@dataclass
class Hand:
    """A curriculum and the tickets that are out, in a world where `solved` says how many of 8 solve a problem."""

    curriculum: Curriculum
    solved: Callable[[int], int]
    out: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    observed: list[Observation] = field(default_factory=list)

    def step(self, answered: int, count: int) -> Draw:
        """The oldest `answered` come back, `count` new ones go out."""
        back, self.out = self.out[:answered], self.out[answered:]
        seen = [o for p in back for o in self.curriculum.observation(p, self.solved(p), ATTEMPTS)]
        draw = self.curriculum.next(count, self.out, seen)
        self.curriculum.drew(draw)
        self.observed += seen
        self.out += draw.problems
        self.asked += draw.problems
        return draw

    @property
    def standing(self) -> Standing:
        """As the books would have it, none of the observations being in a checkpoint."""
        walks = self.curriculum.walks
        return Standing(
            {w.part: w.drawn for w in walks}, {w.part: w.walked for w in walks}, len(self.observed), (*self.observed,)
        )


def one_part(course: Course, problems: int, solved: Callable[[int], int]) -> Hand:
    return Hand(Curriculum(0, (PartCard("all", problems),), course), solved)


def thirds(problem: int) -> int:
    """Of three problems one is never solved, one always, one by half."""
    return (0, ATTEMPTS, ATTEMPTS // 2)[problem % 3]


# -- skip -------------------------------------------------------------------------------------------------------------


def epochs_of(hand: Hand, problem: int) -> list[int]:
    return [o.epoch for o in hand.observed if o.problem == problem]


def test_a_problem_without_contrast_rests_longer_each_time_and_is_never_given_up() -> None:
    hand = one_part(SKIP, 6, thirds)
    for _ in range(400):
        hand.step(len(hand.out), 1)
    for problem in range(6):
        gaps = [b - a for a, b in zip(epochs_of(hand, problem), epochs_of(hand, problem)[1:], strict=False)]
        assert gaps[:6] == ([1] * 6 if thirds(problem) == 4 else [2, 3, 5, 5, 5, 5]), problem


def test_one_group_with_contrast_ends_the_rest() -> None:
    steady = Record()
    for epoch in range(4):
        steady = steady.after(Observation(0, epoch, 0, 8), 16)
    assert (steady.alike, steady.rests_until) == (4, 3 + 1 + 8)
    woken = steady.after(Observation(0, 12, 1, 8), 16)
    assert (woken.alike, woken.rests_until) == (0, 12)


def test_where_all_rest_the_next_is_asked() -> None:
    hand = one_part(SKIP, 3, lambda _: 0)
    for _ in range(200):
        hand.step(len(hand.out), 1)
    assert len(hand.asked) == 200
    assert min(Counter(hand.asked).values()) > 50


@given(st.integers(0, 2**20), st.integers(1, 12), st.lists(st.integers(0, 3), max_size=60))
def test_an_epoch_gives_no_problem_twice_and_none_that_rests_while_others_do_not(
    seed: int, problems: int, answered: list[int]
) -> None:
    chance = random.Random(seed)
    hand = Hand(Curriculum(seed, (PartCard("a", problems),), SKIP), lambda _: chance.choice([0, 0, 4, 8, 8]))
    given_at = set[tuple[int, int]]()
    for count in answered:
        (problem,) = hand.step(count, 1).problems
        epoch, history = hand.curriculum.walks[0].epoch, hand.curriculum.memory.now
        assert (epoch, problem) not in given_at
        given_at.add((epoch, problem))
        if history[problem].rests_until > epoch:
            assert all(history[other].rests_until > epoch for other in range(problems))


# -- target -----------------------------------------------------------------------------------------------------------


def test_most_draws_go_to_problems_that_half_solves_and_none_is_forgotten() -> None:
    hand = one_part(TARGET, 60, thirds)
    for _ in range(150):
        hand.step(min(8, max(0, len(hand.out) - 8)), 8)
    late = Counter(thirds(problem) for problem in hand.asked[400:])
    assert late[4] / late.total() > 0.75
    assert min(Counter(hand.asked).values()) >= 2
    assert set(hand.asked[-600:]) == set(range(60)), "a tenth of the draws walk all of them"


def test_what_is_asked_already_is_not_asked_again_while_there_is_something_else() -> None:
    hand = one_part(Course("target", explore=0.0), 12, thirds)
    for _ in range(60):
        hand.step(max(0, len(hand.out) - 8), 4)
        assert len(set(hand.out)) == len(hand.out) == min(12, len(hand.out))
    hand.step(0, 8)
    assert set(hand.out) == set(range(12))


@pytest.mark.parametrize(("solved", "attempts", "appeal"), [(0, 0, 1.0), (4, 8, 1.86), (0, 8, 0.24), (16, 16, 0.089)])
def test_the_appeal_is_the_variance_that_is_expected_squared(solved: int, attempts: int, appeal: float) -> None:
    assert TARGET.appeal(Record(solved, attempts)) == pytest.approx(appeal, rel=0.01)
    rates = [(n + 0.5) / 4000 for n in range(4000)]
    belief = [p**solved * (1 - p) ** (attempts - solved) for p in rates]
    expected = sum(w * p * (1 - p) for w, p in zip(belief, rates, strict=True)) / sum(belief)
    assert TARGET.appeal(Record(solved, attempts)) == pytest.approx((6 * expected) ** 2, rel=1e-4)


# -- what is remembered -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**20), courses, cards, moves, st.data())
def test_taken_up_at_any_commit_from_any_checkpoint_before_it_the_course_is_the_same(
    seed: int, course: Course, parts: list[PartCard], steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    solved = {p: random.Random(f"{seed} {p}").choice([0, 1, 4, 8]) for p in range(sum(part.train for part in parts))}
    whole = Hand(Curriculum(seed, parts, course), solved.__getitem__)
    cut_at = data.draw(st.integers(0, len(steps)))
    saved_at = data.draw(st.integers(0, cut_at))
    saved = 0
    for number, (answered, count) in enumerate(steps[:cut_at]):
        saved = len(whole.observed) if number == saved_at else saved
        whole.step(answered, count)
    document = whole.curriculum.memory.at(saved).encode()
    kept = data.draw(st.integers(0, saved))  # observations that the checkpoint has, and that were not trimmed yet
    books = whole.standing
    again = Hand(Curriculum(seed, parts, course), solved.__getitem__, list(whole.out))
    again.curriculum.remember(History.decode(document, course.longest_rest, saved))
    again.curriculum.resume(Standing(books.drawn, books.walked, books.observed, books.latest[kept:]))
    if data.draw(st.booleans()):
        whole.curriculum.memory.final(saved)
    for answered, count in [*steps[cut_at:], (3, 5)]:
        assert again.step(answered, count) == whole.step(answered, count)
    everything = len(whole.observed)
    assert again.curriculum.memory.at(everything).encode() == whole.curriculum.memory.at(everything).encode()
    assert again.curriculum.memory.now.states == whole.curriculum.memory.now.states


@given(courses, st.integers(0, 30))
def test_looking_ahead_changes_nothing(course: Course, count: int) -> None:
    curriculum = Curriculum(1, (PartCard("a", 5), PartCard("b", 3)), course)
    seen = [o for p in range(8) for o in curriculum.observation(p, 0, ATTEMPTS)]
    assert curriculum.next(count, [1], seen) == curriculum.next(count, [1], seen)
    assert curriculum.summary() == Curriculum(1, (PartCard("a", 5), PartCard("b", 3)), course).summary()


@given(st.integers(0, 2**20), courses, st.integers(1, 8))
def test_what_comes_back_in_a_commit_counts_for_what_goes_out_in_it(seed: int, course: Course, count: int) -> None:
    together, after = (Curriculum(seed, (PartCard("a", 12),), course) for _ in range(2))
    seen = [o for p in range(12) for o in together.observation(p, thirds(p), ATTEMPTS)]
    after.drew(after.next(0, (), seen))
    assert together.next(count, (), seen).problems == after.next(count).problems


def test_the_memory_lets_go_of_what_a_checkpoint_holds() -> None:
    memory = Memory(History(4))
    seen = [Observation(p, 0, p % 9, 8) for p in range(20)]
    memory.observe(seen)
    memory.final(15)
    memory.final(15)
    afresh = History(4)
    afresh.fold(seen)
    assert memory.at(20).encode() == memory.now.encode() == afresh.encode()


RECORDS: list[list[object]] = [
    [1],
    [1, 2.0, 1.0, 0, 0],
    [1, 0.0, 0.0, 0, 0],
    [-1, 0.0, 1.0, 0, 0],
    [1, "0", 1.0, 0, 0],
    [1.5, 0.0, 1.0, 0, 0],
    [True, 0.0, 1.0, 0, 0],
    [1, 0.0, 1.0, 2**60, 0],
]


@pytest.mark.parametrize("raw", [{}, "x", *([record] for record in RECORDS)])
def test_a_history_that_cannot_be_is_refused(raw: object) -> None:
    with pytest.raises(Malformed):
        History.decode(raw, 4, 0)


@pytest.mark.parametrize("raw", [b"", b"1 2 3", b"1 2 3 x", b"1 0 9 8", b"1 0 0 0", b"-1 0 0 8", b"\xff 0 0 8"])
def test_an_observation_that_cannot_be_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        Observation.decode(raw)
    assert Observation.decode(b"3 1 2 8") == Observation(3, 1, 2, 8)
