"""What both sides told of a group is put together again, and only what belongs together."""

from __future__ import annotations

from typing import Any

import pytest
import redis as redis_library

from broker.audit import Note, Sampling, Share, Use, encode_note
from broker.errors import Refused
from broker.keys import Keys
from monitoring.pick import pick, surprise
from monitoring.trail import PAGE, Life, Told, Trail, joined
from tests.broker.test_audit import answer, sampling, use

A, B = "t0000000001p0000000005", "t0000000012p0000000005"


def told(*notes: Note) -> list[Told]:
    return [Told(100.0 + n, note) for n, note in enumerate(notes)]


def of(ticket_id: str, *rewards: float, logprobs: tuple[float, ...] = ()) -> Sampling:
    likely = logprobs or (-1.0,) * len(rewards)
    return sampling(
        *[answer(reward=r, logprob=p) for r, p in zip(rewards, likely, strict=True)],
        ticket_id=ticket_id,
        sample_seconds=1.25,
    )


def used(ticket_id: str, *rewards: float, **more: Any) -> Use:
    shares = [Share(reward=reward, tokens=1) for reward in rewards]
    return use(*shares, **{"ticket_id": ticket_id, "generator": "host-1", "sample_seconds": 1.25, **more})


# -- joining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner_first", [False, True])
def test_both_notes_make_one_life_whoever_spoke_first(learner_first: bool) -> None:
    notes: list[Note] = [of(A, 0.0, 1.0), used(A, 0.0, 1.0)]
    (life,) = joined(told(*(reversed(notes) if learner_first else notes)))
    assert (life.ticket_id, life.sampling, life.use) == (A, *notes)
    assert (life.verdict, life.reward, life.attempts) == ("trained", 0.5, 1)
    assert life.told_at == 101.0
    assert life.used_at == (100.0 if learner_first else 101.0)


def test_a_late_copy_s_texts_are_not_shown_beside_another_s_numbers() -> None:
    first, copy = of(A, 0.0, 1.0), of(A, 1.0, 1.0).model_copy(update={"generator": "host-2"})
    (life,) = joined(told(first, used(A, 0.0, 1.0), copy))
    assert life.sampling == first
    assert life.attempts == 2
    slower = of(A, 1.0, 1.0).model_copy(update={"sample_seconds": 1.5})
    (life,) = joined(told(slower, used(A, 0.0, 1.0)))
    assert (life.sampling, life.attempts) == (None, 1)


def test_a_group_that_could_not_be_read_has_what_was_told_of_it_beside_its_reason() -> None:
    unread = Use(ticket_id=A, verdict="failed", reason="not msgpack", published_at=99.0, step=1, version=1)
    (life,) = joined(told(of(A, 0.0), of(A, 1.0), unread))
    assert (life.sampling, life.use, life.attempts) == (of(A, 1.0), unread, 2)


def test_after_a_rollback_the_last_verdict_counts() -> None:
    again = of(A, 1.0, 0.0).model_copy(update={"sample_seconds": 2.5})
    verdicts = used(A, 0.0, 1.0, step=7), used(A, 1.0, 0.0, step=4, sample_seconds=2.5)
    (life,) = joined(told(of(A, 0.0, 1.0), verdicts[0], again, verdicts[1]))
    assert (life.sampling, life.use) == (again, verdicts[1])


def test_one_side_alone_is_a_life_as_well_and_the_newest_is_last() -> None:
    lives = joined(told(of(A, 1.0), used(B, 0.0, verdict="failed", reason="no rollouts"), used(A, 1.0)))
    assert [life.ticket_id for life in lives] == [B, A]
    assert lives[0].sampling is None
    (waiting,) = joined(told(of(A, 1.0)))
    assert (waiting.verdict, waiting.used_at, waiting.published_at) == ("no verdict yet", None, 100.0)


def test_times_from_issue_to_verdict_add_up() -> None:
    seconds = {"wait_seconds": 0.5, "sample_seconds": 2.0, "verify_seconds": 0.25, "hand_seconds": 3.0}
    made = of(A, 1.0).model_copy(update={"issued_at": 90.0, **seconds})
    (life,) = joined(told(made, used(A, 1.0, published_at=100.0, sample_seconds=2.0)))
    assert life.phases == [
        ("waited for a generator", 7.0),
        ("for a version", 0.5),
        ("sampled", 1.5),
        ("verified", 0.25),
        ("published", 0.75),
        ("with the learner", 1.0),
    ]
    assert life.used_at is not None
    assert sum(seconds for _, seconds in life.phases) == life.used_at - made.issued_at


# -- reading ----------------------------------------------------------------------------------------------------------


def add(client: redis_library.Redis, keys: Keys, ticket_id: str, payload: bytes) -> None:
    client.xadd(keys.audit, {"ticket_id": ticket_id, "payload": payload})


def test_pages_are_put_together_and_what_cannot_be_read_is_counted(redis: redis_library.Redis, keys: Keys) -> None:
    for number in range(2 * PAGE):
        ticket = f"t{number:010d}p{0:010d}"
        add(redis, keys, ticket, encode_note(used(ticket, 1.0), 4096))
    add(redis, keys, A, b"\x80\x04\x95")
    add(redis, keys, A, encode_note(used(B, 1.0), 4096))
    redis.xadd(keys.audit, {"something": "else"})
    far = {"ticket_id": A, "payload": encode_note(used(A, 1.0), 4096)}
    redis.xadd(keys.audit, far, id="18446744073709551615-1")  # type: ignore[arg-type]
    before = redis.dump(keys.audit)
    trail = Trail.read(redis, keys)
    assert len({life.ticket_id for life in trail.lives}) == len(trail.lives) == 2 * PAGE
    assert trail.unreadable == 4
    assert redis.dump(keys.audit) == before


def test_a_log_that_is_not_there_is_empty(redis: redis_library.Redis, keys: Keys) -> None:
    assert Trail.read(redis, keys) == Trail(())


# -- picking ----------------------------------------------------------------------------------------------------------


def lives() -> list[Life]:
    made = [of(A, 0.0, 0.0), of(B, 1.0, 1.0), of("t0000000123p0000000045", 1.0, 0.0)]
    return joined(told(*made))


@pytest.mark.parametrize(
    ("wanted", "number"),
    [(A, 1), (A[:11], 1), ("1", 1), ("123", 123), ("0123", 123), ("t00000001", 123), ("12", 12), ("latest", 123)],
)
def test_a_group_is_found_by_its_id_the_beginning_of_one_or_its_number(wanted: str, number: int) -> None:
    found = pick(lives(), wanted)
    assert found is not None
    assert found.ticket_id.startswith(f"t{number:010d}p")


def test_the_beginning_of_several_is_refused() -> None:
    with pytest.raises(Refused, match=r"3 groups begin with t00 \(t0000000001p0000000005, .*: say more"):
        pick(lives(), "t00")


@pytest.mark.parametrize("wanted", ["t9", "7", "9" * 5000, "somebody", "\u0663"])
def test_none_is_none(wanted: str) -> None:
    assert pick(lives(), wanted) is None
    assert pick([], wanted) is None


def test_the_best_the_worst_and_of_equals_the_newest() -> None:
    some = joined(told(of(A, 0.5, 0.5), of(B, 0.0, 1.0), of("t3", 0.5, 0.5), of("t4", 0.25)))
    found = {word: pick(some, word) for word in ("best", "worst", "latest")}
    assert {word: life and life.ticket_id for word, life in found.items()} == {
        "best": "t3", "worst": "t4", "latest": "t4"
    }  # fmt: skip
    assert pick([], "best") is None


def test_what_surprises_is_one_answer_that_is_unlike_the_others_and_of_those_the_least_likely() -> None:
    usual, halves = of("t1", 0.0, 0.0, 1.0, 1.0), of("t2", 0.0, 1.0, 0.5, 0.5)
    alone, rarer = of("t3", 0.0, 0.0, 0.0, 1.0), of("t4", 1.0, 1.0, 0.0, 1.0, logprobs=(-9.0, -9.0, -3.0, -9.0))
    (made,) = joined(told(rarer))
    assert surprise(made) == (1.0, 3.0), "of that very answer"
    found = pick(joined(told(rarer, usual, halves, alone)), "surprising")
    assert found is not None
    assert found.ticket_id == "t4"
