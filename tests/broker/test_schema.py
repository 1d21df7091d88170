"""What was encoded is decoded unchanged; everything else raises `Malformed`, and nothing but `Malformed`."""

from __future__ import annotations

import math
import random
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.decoding import decode_group, decode_ticket
from broker.errors import Malformed
from broker.schema import (
    LARGEST_FLOAT32,
    SCHEMA_VERSION,
    Kind,
    Rollout,
    RolloutGroup,
    Ticket,
    VersionSpan,
    encode_group,
    encode_ticket,
    tombstone,
)

numbers = st.integers(0, 2**53 - 1)
ids = st.text(min_size=1, max_size=64)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["train", "eval"])
tickets = st.builds(Ticket, ids, numbers, numbers, numbers, kinds)
tokens = st.integers(0, 2**31 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    sampled = draw(st.lists(tokens, min_size=1, max_size=12))
    cuts = sorted(draw(st.sets(st.integers(1, len(sampled) - 1)))) if len(sampled) > 1 else []
    ends = [*cuts, len(sampled)]
    spans = [VersionSpan(draw(tokens), start, end) for start, end in zip([0, *cuts], ends, strict=True)]
    logprobs = draw(st.lists(st.floats(-100, 0, width=32), min_size=len(sampled), max_size=len(sampled)))
    components = draw(st.dictionaries(st.text(max_size=16), finite, max_size=4))
    reward, truncated = draw(finite), draw(st.booleans())
    return Rollout(
        np.array(sampled, np.int32), np.array(logprobs, np.float32), tuple(spans), reward, components, truncated
    )


@st.composite
def groups(draw: st.DrawFn) -> RolloutGroup:
    prompt = np.array(draw(st.lists(tokens, min_size=1, max_size=8)), np.int32)
    sampled = tuple(draw(st.lists(rollouts(), min_size=1, max_size=4)))
    seconds = draw(st.floats(0, 1e6))
    return RolloutGroup(draw(ids), draw(kinds), draw(numbers), prompt, sampled, draw(st.text(max_size=64)), "", seconds)


def same(one: Any, other: Any) -> bool:
    """Field by field, arrays by content and type."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Rollout | RolloutGroup):
        names = one.__struct_fields__
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def a_group() -> RolloutGroup:
    two = tuple(
        Rollout(
            np.array([5, 6, 7], np.int32),
            np.array([-0.5, -1.0, 0.0], np.float32),
            (VersionSpan(3, 0, 2), VersionSpan(4, 2, 3)),
            reward,
            {"exact": reward, "format": 1.0},
        )
        for reward in (0.0, 1.0)
    )
    return RolloutGroup("t0000000001", "train", 17, np.array([1, 2], np.int32), two, "host-1", "", 0.25)


# -- round trips ------------------------------------------------------------------------------------------------------


@given(tickets)
def test_a_ticket_survives_the_journey(ticket: Ticket) -> None:
    assert decode_ticket(encode_ticket(ticket)) == ticket


@given(groups())
def test_a_group_survives_the_journey(group: RolloutGroup) -> None:
    assert same(decode_group(encode_group(group)), group)


@given(tickets, st.text(max_size=5000), st.text(max_size=64))
def test_a_tombstone_survives_the_journey(ticket: Ticket, reason: str, generator: str) -> None:
    decoded = decode_group(encode_group(tombstone(ticket, reason, generator)))
    assert (decoded.ticket_id, decoded.kind, decoded.problem) == (ticket.ticket_id, ticket.kind, ticket.problem)
    assert decoded.rollouts == ()
    assert decoded.failed


@pytest.mark.parametrize("reason", ["", "\udcff lone surrogate", "x" * 10_000])
def test_a_tombstone_can_be_sent_whatever_the_error_said(reason: str) -> None:
    ticket = Ticket("t1", 0, 0, 0)
    assert decode_group(encode_group(tombstone(ticket, reason))).failed


def test_numbers_of_other_types_travel_as_what_they_are() -> None:
    group = a_group()
    odd_values: dict[str, Any] = {"components": {"n": np.float32(1), "m": 2}, "truncated": np.bool_(True)}
    rollout = replace(group.rollouts[0], **odd_values)
    odd = replace(group, rollouts=(rollout,), sample_seconds=3)
    decoded = decode_group(encode_group(odd))
    assert decoded.rollouts[0].components == {"n": 1.0, "m": 2.0}
    assert decoded.rollouts[0].truncated is True
    assert decoded.sample_seconds == 3.0


def test_what_a_group_says_of_itself() -> None:
    group = decode_group(encode_group(a_group()))
    np.testing.assert_array_equal(group.rewards, np.array([0, 1], np.float32))
    np.testing.assert_array_equal(group.rollouts[0].versions(), np.array([3, 3, 4], np.int32))
    assert not group.degenerate
    assert (group.oldest_version, group.completion_tokens) == (3, 6)
    assert replace(group, rollouts=(group.rollouts[0],) * 3).degenerate


# -- rules, one by one ------------------------------------------------------------------------------------------------


def repacked(payload: bytes, path: list[int], value: Any) -> bytes:
    """`payload` with the field at `path` replaced."""
    whole = msgpack.unpackb(payload)
    inner = whole
    for index in path[:-1]:
        inner = inner[index]
    inner[path[-1]] = value
    packed: bytes = msgpack.packb(whole)
    return packed


ROLLOUT = [5, 0]
PROMPT, TOKENS = [1, 2], [5, 6, 7] * 2
LOGPROBS = [-0.5, -1.0, 0.0] * 2


def numbers_of(tokens: list[int], logprobs: list[float]) -> bytes:
    """As the last field of a group has them."""
    return np.array(tokens, np.int32).tobytes() + np.array(logprobs, np.float32).tobytes()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ([0], SCHEMA_VERSION + 1, "^schema version 4, this side speaks 3$"),
        ([0], SCHEMA_VERSION - 1, "^schema version 2, this side speaks 3$"),
        ([0], "3", "^schema version '3', this side speaks 3$"),
        ([1], "", "ticket_id: Expected `str` of length >= 1"),
        ([1], "x" * 65, "ticket_id"),
        ([1], b"t1", "ticket_id: Expected `str`, got `bytes`"),
        ([2], "test", "^kind: Invalid enum value$"),
        ([2], [], "kind"),
        ([3], -1, "problem"),
        ([3], 2**53, "problem"),
        ([3], True, "problem"),
        ([3], 1.0, "problem"),
        ([4], 0, "prompt is empty"),
        ([4], 1, "56 bytes of numbers for 1 tokens of the prompt and 6 others"),
        ([4], -1, "prompt_tokens"),
        ([4], 2**31, "prompt_tokens"),
        ([5], [], "rollouts"),
        ([5], {}, "rollouts"),
        ([5], [[]], "rollouts: Expected `array` of at least length 5, got 0"),
        ([6], None, "generator"),
        ([6], "x" * 257, "generator"),
        ([7], "both failed and answered", "rollouts"),
        ([7], "x" * 4097, "failed"),
        ([8], math.nan, "sample_seconds"),
        ([8], -1.0, "^sample_seconds: out of range, or not finite$"),
        ([8], "1", "sample_seconds"),
        ([9], b"1234", "padding"),
        ([9], "", "padding"),
        ([10], b"", "0 bytes of numbers for 2 tokens of the prompt and 6 others"),
        ([10], "x" * 56, "numbers"),
        ([10], numbers_of(PROMPT + TOKENS, LOGPROBS) + b"1234", "60 bytes of numbers"),
        ([10], numbers_of([-1, 2, *TOKENS], LOGPROBS), "tokens are negative"),
        ([10], numbers_of([*PROMPT, *TOKENS[:-1], -7], LOGPROBS), "tokens are negative"),
        ([10], numbers_of(PROMPT + TOKENS, [math.nan, *LOGPROBS[1:]]), "behaviour_logprobs are not finite"),
        ([10], numbers_of(PROMPT + TOKENS, [*LOGPROBS[:-1], -math.inf]), "behaviour_logprobs are not finite"),
        ([10], numbers_of(PROMPT + TOKENS, [*LOGPROBS[:-1], 1.0]), "behaviour_logprobs out of range"),
        ([*ROLLOUT, 0], [], "rollout 0, spans"),
        ([*ROLLOUT, 0], [[3, 0, 2]], "numbers for 2 tokens of the prompt and 5 others"),
        ([*ROLLOUT, 0], [[3, 1, 3]], "spans do not cover the tokens in order"),
        ([*ROLLOUT, 0], [[3, 0, 2], [4, 1, 3]], "spans do not cover the tokens in order"),
        ([*ROLLOUT, 0], [[3, 0, 2], [4, 3, 4]], "spans do not cover the tokens in order"),
        ([*ROLLOUT, 0], [[3, 0, 0], [4, 0, 3]], "spans do not cover the tokens in order"),
        ([*ROLLOUT, 0], [[3, 0, 4]], "numbers for 2 tokens of the prompt and 7 others"),
        ([*ROLLOUT, 0], [[-1, 0, 3]], "rollout 0, spans"),
        ([*ROLLOUT, 0], [[2**31, 0, 3]], "rollout 0, spans"),
        ([*ROLLOUT, 0], [[3, 0, 1]] * 4, "spans"),
        ([*ROLLOUT, 0], [[3.0, 0, 3]], "rollout 0, spans"),
        ([*ROLLOUT, 0], [[3, 0]], "rollout 0, spans"),
        ([*ROLLOUT, 1], math.nan, "^rollout 0, reward: out of range, or not finite$"),
        ([*ROLLOUT, 1], math.inf, "rollout 0, reward"),
        ([*ROLLOUT, 1], LARGEST_FLOAT32 * 2, "rollout 0, reward"),
        ([*ROLLOUT, 1], True, "rollout 0, reward"),
        ([*ROLLOUT, 2], {"exact": math.inf}, "rollout 0, components"),
        ([*ROLLOUT, 2], {"exact": LARGEST_FLOAT32 * 2}, "rollout 0, components"),
        ([*ROLLOUT, 2], {"x" * 65: 1.0}, "rollout 0, components"),
        ([*ROLLOUT, 2], {"é" * 33: 1.0}, "components"),
        ([*ROLLOUT, 2], {b"bytes": 1.0}, "rollout 0, components"),
        ([*ROLLOUT, 2], {str(n): 1.0 for n in range(33)}, "rollout 0, components"),
        ([5, 1, 3], 1, "rollout 1, truncated"),
        ([*ROLLOUT, 4], -2, "rollout 0, answer"),
        ([*ROLLOUT, 4], 2**31, "rollout 0, answer"),
        ([*ROLLOUT, 4], True, "rollout 0, answer"),
    ],
)
def test_each_rule_of_a_group(path: list[int], value: Any, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        decode_group(repacked(encode_group(a_group()), path, value))


def test_a_prompt_of_no_tokens_is_refused_unless_the_group_failed() -> None:
    with pytest.raises(Malformed, match="prompt is empty"):
        decode_group(encode_group(replace(a_group(), prompt=np.empty(0, np.int32))))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0", b"\0\0\0"])
def test_numbers_that_begin_anywhere_are_arrays_nevertheless(padding: bytes) -> None:
    group = decode_group(repacked(encode_group(a_group()), [9], padding))
    assert same(group, a_group())
    assert all(one.flags.aligned for r in group.rollouts for one in (r.tokens, r.behaviour_logprobs))


def test_the_arrays_of_a_group_are_the_bytes_of_its_message() -> None:
    payload = encode_group(a_group())
    group = decode_group(payload)
    within = np.frombuffer(payload, np.uint8)
    for one in (group.prompt, *(r.tokens for r in group.rollouts), *(r.behaviour_logprobs for r in group.rollouts)):
        assert np.shares_memory(one, within)
        assert one.flags.aligned
        assert not one.flags.writeable


@pytest.mark.parametrize("bits", [0x7FA00000, 0x7F800001, 0xFFA00001, 0x7FC00000, 0xFF800000, 0x7F800000])
def test_no_bit_pattern_of_what_is_no_number_passes(bits: int) -> None:
    for at in range(6):
        logprobs = np.array(LOGPROBS, np.float32)
        logprobs.view(np.uint32)[at] = bits
        numbers = np.array(PROMPT + TOKENS, np.int32).tobytes() + logprobs.tobytes()
        with pytest.raises(Malformed, match="behaviour_logprobs"):
            decode_group(repacked(encode_group(a_group()), [10], numbers))


def test_what_somebody_wrote_is_not_in_the_reason() -> None:
    with pytest.raises(Malformed) as caught:
        decode_group(repacked(encode_group(a_group()), [2], "\x1b[2J" * 1000))
    assert str(caught.value) == "kind: Invalid enum value"


@pytest.mark.parametrize(
    "change", [{"tokens": TOKENS[:2]}, {"behaviour_logprobs": LOGPROBS[:4]}, {"spans": ()}, {"spans": ((3, 0, 2),)}]
)
def test_a_completion_whose_parts_are_not_of_one_length_is_not_sent(change: dict[str, Any]) -> None:
    if "spans" in change:
        changed = replace(a_group().rollouts[0], spans=tuple(VersionSpan(*span) for span in change["spans"]))
    else:
        changed = replace(a_group().rollouts[0], **{name: np.array(value) for name, value in change.items()})
    with pytest.raises(ValueError, match="not of one length"):
        encode_group(replace(a_group(), rollouts=(changed,)))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ([0], None, "schema version"),
        ([0], 2, "schema version 2, this side speaks 3"),
        ([1], 7, "ticket_id"),
        ([2], -1, "problem"),
        ([3], 2**53, "seed"),
        ([4], False, "min_policy_version"),
        ([5], "", "kind"),
    ],
)
def test_each_rule_of_a_ticket(path: list[int], value: Any, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        decode_ticket(repacked(encode_ticket(Ticket("t1", 1, 2, 3)), path, value))


@pytest.mark.parametrize("change", [lambda fields: fields[:-1], lambda fields: [*fields, 0], lambda fields: []])
def test_a_message_with_more_or_fewer_fields_is_refused(change: Any) -> None:
    for decode, payload in (
        (decode_ticket, encode_ticket(Ticket("t1", 1, 2, 3))),
        (decode_group, encode_group(a_group())),
    ):
        with pytest.raises(Malformed, match="not of these fields"):
            decode(msgpack.packb(change(msgpack.unpackb(payload))))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x90" * 100_000,
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xa1\xff",
        b"\x80",
        b"\x81\x91\x01\x01",
        b"cos\nsystem\n(S'true'\ntR.",
        "text",
        None,
    ],
)
def test_bytes_that_are_no_message(payload: Any) -> None:
    for decode in (decode_group, decode_ticket):
        with pytest.raises(Malformed):
            decode(payload)


# -- whatever else may arrive -----------------------------------------------------------------------------------------


def examine(payload: bytes) -> bool:
    """Decode as both; a group that passes must keep its promises. True if anything was accepted."""
    accepted = False
    try:
        decode_ticket(payload)
        accepted = True
    except Malformed:
        pass
    try:
        group = decode_group(payload)
    except Malformed:
        return accepted
    assert bool(group.failed) != bool(group.rollouts)
    assert np.isfinite(group.rewards).all()
    for rollout in group.rollouts:
        assert len(rollout.tokens) == len(rollout.behaviour_logprobs) == len(rollout.versions()) > 0
        assert rollout.versions().min() == rollout.oldest_version
        assert np.isfinite(rollout.behaviour_logprobs).all()
    assert same(decode_group(encode_group(group)), group)
    return True


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_random_bytes_are_refused(payload: bytes) -> None:
    assert not examine(payload)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=16),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, min_size=6, max_size=9))
@settings(max_examples=100)
def test_messages_of_another_shape_are_refused(fields: list[Any]) -> None:
    assert not examine(msgpack.packb(fields))


@given(groups(), values, st.data())
@settings(max_examples=100)
def test_a_group_with_one_field_of_another_kind(group: RolloutGroup, value: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([[n] for n in range(11)] + [[*ROLLOUT, n] for n in range(5)]))
    examine(repacked(encode_group(group), path, value))


def test_every_truncation_is_refused() -> None:
    for payload in (
        encode_group(a_group()),
        encode_ticket(Ticket("t1", 1, 2, 3)),
        encode_group(tombstone(Ticket("t", 0, 0, 0), "x")),
    ):
        for end in range(len(payload)):
            assert not examine(payload[:end])
        assert not examine(payload + b"\0")


def test_thousands_of_mutations_never_raise_anything_else() -> None:
    chance = random.Random(0)
    originals = [
        encode_group(a_group()),
        encode_ticket(Ticket("t1", 1, 2, 3)),
        encode_group(tombstone(Ticket("t", 0, 0, 0), "x")),
    ]
    accepted = 0
    for _ in range(6000):
        payload = bytearray(chance.choice(originals))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(payload))
            match chance.randrange(3):
                case 0:
                    payload[at] = chance.randrange(256)
                case 1:
                    del payload[at : at + chance.randint(1, 8)]
                case _:
                    payload[at:at] = chance.randbytes(chance.randint(1, 8))
            if not payload:
                break
        accepted += examine(bytes(payload))
    assert 0 < accepted < 3000  # a changed token is another token; a changed length must not pass
