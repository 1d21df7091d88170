"""Tickets and groups as they come from Redis, from whoever wrote them there.

Invariant: what is returned satisfies every length, range and finiteness rule of its class, or `Malformed` is raised;
nothing is ever unpickled. Refuses to know what a prompt or an answer means.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from broker.documents import shown
from broker.errors import Malformed
from broker.schema import (
    FLOAT,
    INT,
    LARGEST_FLOAT32,
    MAX_COMPONENTS,
    MAX_NAME_BYTES,
    SCHEMA_VERSION,
    Floats,
    Ints,
    Rollout,
    RolloutGroup,
    Ticket,
    VersionSpan,
)

MAX_PAYLOAD_BYTES = 64 << 20


def decode_ticket(payload: bytes) -> Ticket:
    """Raises `Malformed`."""
    version, ticket_id, problem, seed, minimum, kind = _unpack(payload, 6)
    _check_version(version)
    _check(isinstance(ticket_id, str) and 0 < len(ticket_id) <= 64, "ticket_id")
    for name, value in (("problem", problem), ("seed", seed), ("min_policy_version", minimum)):
        _check(type(value) is int and 0 <= value < 2**53, name)
    _check(kind in ("train", "eval"), "kind")
    return Ticket(ticket_id, problem, seed, minimum, kind)


def decode_group(payload: bytes) -> RolloutGroup:
    """Raises `Malformed` with the name of the first rule that is broken."""
    version, ticket_id, kind, problem, prompt, rollouts, generator, failed, seconds = _unpack(payload, 9)
    _check_version(version)
    _check(isinstance(ticket_id, str) and 0 < len(ticket_id) <= 64, "ticket_id")
    _check(kind in ("train", "eval"), "kind")
    _check(type(problem) is int and 0 <= problem < 2**53, "problem")
    _check(isinstance(generator, str) and len(generator) <= 256, "generator")
    _check(isinstance(failed, str) and len(failed) <= 4096, "failed")
    _check(isinstance(seconds, float) and isfinite(seconds) and seconds >= 0, "sample_seconds")
    _check(type(rollouts) is tuple and (bool(rollouts) != bool(failed)), "rollouts")
    decoded = _decode_rollouts(rollouts) if rollouts else ()
    (tokens,) = _ints((prompt,), "prompt")
    _check(bool(failed) or len(tokens) > 0, "prompt is empty")
    return RolloutGroup(ticket_id, kind, problem, tokens, decoded, generator, failed, seconds)


def _decode_rollouts(raw: tuple[Any, ...]) -> tuple[Rollout, ...]:
    """What holds of every number of a group is asked once, of all its completions together."""
    for one in raw:
        _check(type(one) is tuple and len(one) == 7, "rollout")
    tokens = _ints([one[0] for one in raw], "tokens")
    numbers, logprobs = _arrays([one[1] for one in raw], FLOAT, "behaviour_logprobs")
    _check(bool(np.isfinite(numbers).all()), "behaviour_logprobs are not finite")
    _check(not numbers.size or numbers.max() <= 1e-3, "behaviour_logprobs out of range")
    return tuple(map(_decode_rollout, raw, tokens, logprobs))


def _decode_rollout(raw: tuple[Any, ...], tokens: Ints, logprobs: Floats) -> Rollout:
    """Without a call for each rule: there are eight completions to a group, and more."""
    _, _, spans, reward, components, truncated, answer = raw
    length = len(tokens)
    if not length:
        raise Malformed("tokens are empty")
    if length != len(logprobs):
        raise Malformed("behaviour_logprobs has another length than tokens")
    if not (type(reward) is float and abs(reward) <= LARGEST_FLOAT32):  # NaN fails every comparison
        raise Malformed("reward")
    if type(truncated) is not bool:
        raise Malformed("truncated")
    if not (type(answer) is int and -1 <= answer < 2**31):
        raise Malformed("answer")
    if not (type(components) is dict and len(components) <= MAX_COMPONENTS):
        raise Malformed("components")
    for name, value in components.items():
        if type(name) is not str or (len(name) > MAX_NAME_BYTES // 4 and _bytes(name) > MAX_NAME_BYTES):
            raise Malformed("components")
        if not (type(value) is float and isfinite(value)):
            raise Malformed(f"component {name!r}")
    return Rollout(tokens, logprobs, _spans(spans, length), reward, components, truncated, answer)


def _spans(raw: Any, length: int) -> tuple[VersionSpan, ...]:
    if not (type(raw) is tuple and 0 < len(raw) <= length):
        raise Malformed("spans")
    spans, at = [], 0
    for item in raw:
        if not (type(item) is tuple and len(item) == 3):
            raise Malformed("spans")
        version, start, end = item
        if not (type(version) is type(start) is type(end) is int):
            raise Malformed("spans")
        if not (0 <= version < 2**31 and start == at < end <= length):
            raise Malformed("spans do not cover the tokens in order")
        spans.append(VersionSpan(version, start, end))
        at = end
    if at != length:
        raise Malformed("spans do not cover the tokens")
    return tuple(spans)


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "replace"))


def _ints(raw: Sequence[Any], name: str) -> list[Ints]:
    whole, parts = _arrays(raw, INT, name)
    _check(not whole.size or whole.min() >= 0, name)
    return parts


def _arrays(raw: Sequence[Any], dtype: np.dtype[Any], name: str) -> tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]:
    """All bytes as one array, and what each of them says: views."""
    for one in raw:
        if not (type(one) is bytes and len(one) % 4 == 0):
            raise Malformed(name)
    whole = np.frombuffer(b"".join(raw), dtype)
    parts, at = [], 0
    for one in raw:
        end = at + len(one) // 4
        parts.append(whole[at:end])
        at = end
    return whole, parts


def _unpack(payload: bytes, fields: int) -> tuple[Any, ...]:
    _check(isinstance(payload, bytes) and len(payload) <= MAX_PAYLOAD_BYTES, "payload is too large or not bytes")
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {type(error).__name__}") from None
    if not (type(value) is tuple and len(value) == fields):
        raise Malformed(f"expected {fields} fields")
    return value


def _check_version(version: Any) -> None:
    if type(version) is not int or version != SCHEMA_VERSION:
        raise Malformed(f"schema version {shown(version)}, this side speaks {SCHEMA_VERSION}")


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(what)
