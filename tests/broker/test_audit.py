"""Notes on groups: what is said comes back, what is too long is cut and says so, what is broken is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.audit import (
    LEAST_BYTES,
    MOST_BYTES,
    REASON,
    VERSION,
    Answer,
    Excerpt,
    Note,
    Sampling,
    Share,
    Span,
    Use,
    decode_note,
    encode_note,
    fair,
)
from broker.errors import Malformed

TICKET = "t0000000123p0000000045"


def answer(text: str = "7", **changed: Any) -> Answer:
    said: dict[str, Any] = {
        "text": Excerpt.of(text), "tokens": 3, "logprob": -0.5, "reward": 1.0, "components": {"correct": 1.0},
        "failed": "", "truncated": False, "spans": (Span(policy_version=3, start=0, end=3),),
    }  # fmt: skip
    return Answer(**{**said, **changed})


def sampling(*answers: Answer, **changed: Any) -> Sampling:
    said: dict[str, Any] = {
        "ticket_id": TICKET, "problem": 45, "seed": 9, "min_policy_version": 3, "issued_at": 1.7e9, "deliveries": 1,
        "generator": "host-1", "prompt": Excerpt.of("What is 3 + 4?"), "gold": Excerpt.of("7"), "answers": answers,
    }  # fmt: skip
    return Sampling(**{**said, **changed})


def use(*rollouts: Share, **changed: Any) -> Use:
    said: dict[str, Any] = {
        "ticket_id": TICKET, "verdict": "trained", "published_at": 1.7e9, "step": 4, "version": 3, "rollouts": rollouts,
    }  # fmt: skip
    return Use(**{**said, **changed})


SHARE = Share(reward=1.0, tokens=3, advantage=0.5, ratio_mean=1.0, ratio_min=0.9, ratio_max=1.1, clipped=0.0)
NOTES: list[Note] = [
    sampling(answer("7"), answer("8", reward=None, logprob=None, components={})),
    sampling(failed=Excerpt.of("the engine has a fever")),
    use(SHARE, Share(reward=0.0, tokens=5)),
    use(verdict="failed", reason="no rollouts"),
]


@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
def test_what_was_said_comes_back(note: Note) -> None:
    assert decode_note(encode_note(note, LEAST_BYTES)) == note


text = st.text(st.characters(exclude_categories=[]), max_size=3000)
answers = st.builds(
    answer,
    text,
    failed=st.text(st.characters(exclude_categories=["Cs"]), max_size=REASON),
    components=st.dictionaries(st.text("ab", max_size=64), st.floats(-1, 1), max_size=32),
    spans=st.lists(st.builds(Span, policy_version=st.just(2**52), start=st.just(1), end=st.just(2)), max_size=9).map(
        tuple
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(answers, max_size=12), text, text, st.integers(LEAST_BYTES, 20_000))
def test_a_sampling_is_never_longer_than_it_may_be_and_counts_what_it_leaves_out(
    said: list[Answer], prompt: str, failed: str, limit: int
) -> None:
    note = sampling(
        *said, prompt=Excerpt.of(prompt), failed=Excerpt.of(failed), generator="\N{WATER WAVE}" * 256, level="ä" * 64
    )
    payload = encode_note(note, limit)
    assert len(payload) <= limit
    found = decode_note(payload)
    assert isinstance(found, Sampling)
    assert len(found.answers) + found.answers_left_out == len(said)
    for cut, whole in ((found.prompt, note.prompt), *((f.text, s.text) for f, s in zip(found.answers, said))):
        assert len(cut.head) + cut.left_out + len(cut.tail) == len(whole.head)
        assert whole.head.startswith(cut.head)
        assert whole.head.endswith(cut.tail)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 700), st.integers(LEAST_BYTES, 20_000))
def test_a_use_is_never_longer_than_it_may_be_and_counts_what_it_leaves_out(count: int, limit: int) -> None:
    note = use(*[SHARE] * count, reason="\N{WATER WAVE}" * REASON, generator="\N{WATER WAVE}" * 256)
    payload = encode_note(note, limit)
    assert len(payload) <= limit
    found = decode_note(payload)
    assert isinstance(found, Use)
    assert len(found.rollouts) + found.rollouts_left_out == count


def test_a_note_that_fits_is_whole_and_one_that_does_not_uses_its_room() -> None:
    short, long = "short", "a" * 5000 + "b" * 5000
    whole = sampling(answer(short), answer(long))
    assert decode_note(encode_note(whole, 20_000)) == whole
    payload = encode_note(whole, 8000)
    assert 7700 < len(payload) <= 8000
    found = decode_note(payload)
    assert isinstance(found, Sampling)
    first, second = (a.text for a in found.answers)
    assert first == Excerpt.of(short), "short texts stay whole"
    assert (second.head[0], second.tail[-1]) == ("a", "b")
    assert len(second.tail) > len(second.head) > 1000, "an answer comes last"


def test_room_is_shared_and_nobody_gets_more_than_is_needed() -> None:
    assert fair([10, 100, 100], 90) == [10, 40, 40]
    assert fair([100, 5, 5], 1000) == [100, 5, 5]
    assert fair([3, 3], 0) == fair([3, 3], -5) == [0, 0]
    assert fair([], 10) == []


def changed(note: Note, **fields: Any) -> bytes:
    packed: bytes = msgpack.packb((VERSION, {**note.model_dump(), **fields}))
    return packed


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not msgpack"),
        (b"\x80\x04\x95", "not msgpack"),
        (msgpack.packb(3), "not a note"),
        (msgpack.packb([VERSION]), "not a note"),
        (msgpack.packb([VERSION, 3]), "model_attributes_type"),
        (msgpack.packb([99, NOTES[0].model_dump()]), "schema version 99, this side speaks 1"),
        (b"x" * (MOST_BYTES + 1), "too long"),
        (changed(NOTES[0], by="somebody"), "union_tag_invalid"),
        (changed(NOTES[0], ticket_id=""), "ticket_id.*string_too_short"),
        (changed(NOTES[0], ticket_id=b"t1"), "ticket_id.*string_type"),
        (changed(NOTES[0], problem=-1), "problem.*greater_than_equal"),
        (changed(NOTES[0], seed=1.5), "seed.*int_type"),
        (changed(NOTES[0], sample_seconds=float("nan")), "sample_seconds.*finite_number"),
        (changed(NOTES[0], issued_at=1e12), "issued_at.*less_than"),
        (changed(NOTES[0], advantage=[1.0]), "advantage.*extra_forbidden"),
        (changed(NOTES[2], verdict="forgotten"), "verdict.*literal_error"),
        (changed(NOTES[2], rollouts=[{"reward": 1e300, "tokens": 1}]), "rollouts.0.reward.*less_than_equal"),
        (changed(NOTES[2], prompt={"head": "text"}), "prompt.*extra_forbidden"),
    ],
)
def test_what_is_no_note_is_refused_with_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode_note(payload)


def test_the_learner_has_no_field_for_a_text_and_a_generator_none_for_an_advantage() -> None:
    told = " ".join([*Use.model_fields, *Share.model_fields])
    assert "text" not in told
    assert "prompt" not in told
    assert not {"advantage", "ratio_mean", "clipped"} & {*Sampling.model_fields, *Answer.model_fields}
