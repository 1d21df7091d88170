"""Tickets and groups as they come from Redis, from whoever wrote them there.

Invariant: what is returned satisfies every length, range and finiteness rule of its class, or `Malformed` is raised;
nothing is ever unpickled. What a form says of one field is checked as it is read, and here what fields say of each
other. Refuses to know what a prompt or an answer means.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
import numpy as np

from broker.documents import shown
from broker.errors import Malformed
from broker.schema import (
    FLOAT,
    INT,
    LARGEST_FLOAT32,
    MAX_NAME_BYTES,
    SCHEMA_VERSION,
    Floats,
    Form,
    GroupForm,
    Ints,
    Rollout,
    RolloutForm,
    RolloutGroup,
    Ticket,
    TicketForm,
    VersionSpan,
)

MAX_PAYLOAD_BYTES = 64 << 20
LARGEST_LOGPROB = 1e-3  # rounding may leave it above 0

_TICKETS = msgspec.msgpack.Decoder(TicketForm)
_GROUPS = msgspec.msgpack.Decoder(GroupForm)
_VALUE = " '"  # begins what msgspec repeats of a value
_Form = TypeVar("_Form", TicketForm, GroupForm)


def decode_ticket(payload: bytes) -> Ticket:
    """Raises `Malformed`."""
    form = _read(payload, _TICKETS)
    return Ticket(form.ticket_id, form.problem, form.seed, form.min_policy_version, form.kind)


def decode_group(payload: bytes) -> RolloutGroup:
    """Its arrays are read-only views of `payload`. Raises `Malformed` with the first rule that is broken."""
    form = _read(payload, _GROUPS)
    if bool(form.rollouts) == bool(form.failed):
        raise Malformed("rollouts")
    if not (form.prompt_tokens or form.failed):
        raise Malformed("prompt is empty")
    lengths = [_covered(one.spans) for one in form.rollouts]
    tokens, logprobs = _numbers(form.numbers, form.prompt_tokens, sum(lengths))
    rollouts, at, start = list[Rollout](), 0, form.prompt_tokens
    for one, length in zip(form.rollouts, lengths, strict=True):
        for name in one.components:
            if len(name) > MAX_NAME_BYTES // 4 and len(name.encode()) > MAX_NAME_BYTES:
                raise Malformed("components")
        ids, chances = tokens[start + at : start + at + length], logprobs[at : at + length]
        rollouts.append(Rollout(ids, chances, one.spans, one.reward, one.components, one.truncated, one.answer))
        at += length
    said = form.ticket_id, form.kind, form.problem, tokens[:start], tuple(rollouts), form.generator, form.failed
    return RolloutGroup(*said, form.sample_seconds)


def _covered(spans: tuple[VersionSpan, ...]) -> int:
    """How many tokens they cover, in order and without a gap."""
    at = 0
    for _, start, end in spans:
        if not start == at < end:
            raise Malformed("spans do not cover the tokens in order")
        at = end
    return at


def _numbers(raw: memoryview, prompt: int, sampled: int) -> tuple[Ints, Floats]:
    """Tokens (prompt + sampled,) and log-probs (sampled,): each rule is asked once, of all of them together."""
    if len(raw) != 4 * (prompt + 2 * sampled):
        raise Malformed(f"{len(raw)} bytes of numbers for {prompt} tokens of the prompt and {sampled} others")
    tokens = np.frombuffer(raw, INT, prompt + sampled)
    if not tokens.flags.aligned:  # somebody wrote it without the padding
        return _numbers(memoryview(bytes(raw)), prompt, sampled)
    logprobs = np.frombuffer(raw, FLOAT, sampled, tokens.nbytes)
    if prompt + sampled and np.minimum.reduce(tokens) < 0:
        raise Malformed("tokens are negative")
    if sampled:
        least, most = np.minimum.reduce(logprobs), np.maximum.reduce(logprobs)
        if not -LARGEST_FLOAT32 <= least <= most <= LARGEST_LOGPROB:  # as NaN is not
            raise Malformed(f"behaviour_logprobs {'out of range' if np.isfinite(logprobs).all() else 'are not finite'}")
    return tokens, logprobs


def _read(payload: bytes, decoder: msgspec.msgpack.Decoder[_Form]) -> _Form:
    if not (isinstance(payload, bytes) and len(payload) <= MAX_PAYLOAD_BYTES):
        raise Malformed("payload is too large or not bytes")
    try:
        return decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        raise Malformed(_reason(payload, str(error), decoder.type)) from None


def _reason(payload: bytes, error: str, form: type[Form]) -> str:
    """No msgpack at all, of another version, or with a field that is not as it should be."""
    try:
        said = msgspec.msgpack.decode(payload)
    except (ValueError, RecursionError) as broken:
        return f"not msgpack: {type(broken).__name__}"
    if isinstance(said, list) and said and (type(said[0]) is not int or said[0] != SCHEMA_VERSION):
        return f"schema version {shown(said[0])}, this side speaks {SCHEMA_VERSION}"
    return _named(error, form)


def _named(error: str, form: type[Form]) -> str:
    """msgspec names fields by their places, `$[6][0][2]`; and what somebody wrote there must not be in a message."""
    what, _, path = error.partition(" - at ")
    places = [int(place) for place in re.findall(r"\[(\d+)\]", path)]
    what = what.partition(_VALUE)[0]
    if not places:
        return f"not of these fields: {what}"
    name = ("schema version", *form.__struct_fields__)[places[0]]
    if name == "rollouts" and len(places) > 2:
        name = f"rollout {places[1]}, {RolloutForm.__struct_fields__[places[2]]}"
    beyond = what.startswith(("Expected `float` >", "Expected `float` <"))
    return f"{name}: {'out of range, or not finite' if beyond else what}"
