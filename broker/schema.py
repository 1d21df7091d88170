"""What travels: tickets and rollout groups, as msgpack with raw int32/float32 arrays.

Invariant: `decode` returns a value that satisfies every length, range and finiteness rule of its class, or raises
`Malformed`; nothing is ever unpickled. Refuses to know what a prompt or an answer means: text never travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any, Literal

import msgpack
import numpy as np
import numpy.typing as npt

from broker.documents import shown
from broker.errors import Malformed

SCHEMA_VERSION = 2
MAX_PAYLOAD_BYTES = 64 << 20
MAX_COMPONENTS, MAX_NAME_BYTES = 32, 64  # of the reward of a rollout
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

INT, FLOAT = np.dtype("<i4"), np.dtype("<f4")  # on the wire

Kind = Literal["train", "eval"]
KINDS: tuple[Kind, ...] = ("eval", "train")  # evaluation first: it is small and somebody looks at it
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ticket:
    """Permission to sample one group: which problem, with which seed, at which policy version or newer."""

    ticket_id: str
    problem: int
    seed: int
    min_policy_version: int
    kind: Kind = "train"


def solves(reward: float, components: Mapping[str, float]) -> bool:
    """A completion with this verdict solves its problem: `correct` is 1, or the reward where nothing is so called."""
    return components.get("correct", reward) >= 1.0


@dataclass(frozen=True)
class VersionSpan:
    """Tokens `[start, end)` of a completion were sampled by `policy_version`."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True)
class Rollout:
    """One completion with what was true of it when it was sampled.

    `tokens` (T,) int32, `behaviour_logprobs` (T,) float32 under the sampling temperature, `spans` cover `[0, T)` in
    order. `answer` numbers the different declared answers of its group: equal numbers, equal answers; -1: none.
    """

    tokens: Ints
    behaviour_logprobs: Floats
    spans: tuple[VersionSpan, ...]
    reward: float
    components: dict[str, float] = field(default_factory=dict)
    truncated: bool = False
    answer: int = -1

    @property
    def solved(self) -> bool:
        """It solves its problem."""
        return solves(self.reward, self.components)

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that produced a token of this completion."""
        return min(span.policy_version for span in self.spans)

    @property
    def newest_version(self) -> int:
        """The newest one."""
        return max(span.policy_version for span in self.spans)

    def versions(self) -> Ints:
        """Policy version of every token (T,) int32."""
        out = np.empty(len(self.tokens), np.int32)
        for span in self.spans:
            out[span.start : span.end] = span.policy_version
        return out


@dataclass(frozen=True)
class RolloutGroup:
    """The unit of transport, buffering and settling: the G rollouts of one ticket, or why there are none (`failed`)."""

    ticket_id: str
    kind: Kind
    problem: int
    prompt: Ints
    rollouts: tuple[Rollout, ...]
    generator: str = ""
    failed: str = ""
    sample_seconds: float = 0.0

    @cached_property
    def wire(self) -> bytes:
        """As it travels: encoded once, however often it is looked at. Raises `ValueError` for what is no text."""
        return encode_group(self)

    @property
    def rewards(self) -> Floats:
        """(G,) float32."""
        return np.array([r.reward for r in self.rollouts], np.float32)

    @property
    def degenerate(self) -> bool:
        """All rewards equal: nothing to learn from a comparison."""
        return len({r.reward for r in self.rollouts}) <= 1

    @cached_property
    def oldest_version(self) -> int:
        """The oldest policy version that produced a token of the group."""
        return min(span.policy_version for r in self.rollouts for span in r.spans)

    @cached_property
    def newest_version(self) -> int:
        """The newest one."""
        return max(span.policy_version for r in self.rollouts for span in r.spans)

    @property
    def completion_tokens(self) -> int:
        """Tokens sampled for the group."""
        return sum(len(r.tokens) for r in self.rollouts)


@dataclass(frozen=True)
class PartCard:
    """One kind of problems of a task: how many of them `train` holds, and its share of tickets, relative to others."""

    name: str
    train: int
    weight: float = 1.0


@dataclass(frozen=True)
class TaskCard:
    """What dispatch knows of a task: sizes of its splits, their parts and levels, and a hash of their content.

    `train` holds the problems of the first part, then those of the next. `labels` are the (part, level) that occur in
    the held-out split, `held_out_labels` (held_out,) says which one each problem has. `components`: what a reward is
    made of.
    """

    name: str
    train: int
    held_out: int
    content_hash: str
    parts: tuple[PartCard, ...]
    labels: tuple[tuple[int, str], ...] = ()
    held_out_labels: tuple[int, ...] = ()
    components: tuple[str, ...] = ()


def encode_ticket(ticket: Ticket) -> bytes:
    """One ticket as bytes."""
    return _pack(
        [SCHEMA_VERSION, ticket.ticket_id, ticket.problem, ticket.seed, ticket.min_policy_version, ticket.kind]
    )


def decode_ticket(payload: bytes) -> Ticket:
    """Raises `Malformed`."""
    version, ticket_id, problem, seed, minimum, kind = _unpack(payload, 6)
    _check_version(version)
    _check(isinstance(ticket_id, str) and 0 < len(ticket_id) <= 64, "ticket_id")
    for name, value in (("problem", problem), ("seed", seed), ("min_policy_version", minimum)):
        _check(type(value) is int and 0 <= value < 2**53, name)
    _check(kind in ("train", "eval"), "kind")
    return Ticket(ticket_id, problem, seed, minimum, kind)


def encode_group(group: RolloutGroup) -> bytes:
    """One rollout group as bytes; arrays are raw little-endian int32/float32, copied once."""
    rollouts = [
        [
            np.ascontiguousarray(r.tokens, INT).data,
            np.ascontiguousarray(r.behaviour_logprobs, FLOAT).data,
            [[s.policy_version, s.start, s.end] for s in r.spans],
            float(r.reward),
            {name: float(value) for name, value in r.components.items()},
            bool(r.truncated),
            int(r.answer),
        ]
        for r in group.rollouts
    ]
    prompt = np.ascontiguousarray(group.prompt, INT).data
    head = [SCHEMA_VERSION, group.ticket_id, group.kind, group.problem, prompt]
    return _pack([*head, rollouts, group.generator, group.failed, float(group.sample_seconds)])


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


def tombstone(ticket: Ticket, reason: str, generator: str = "") -> RolloutGroup:
    """The group that settles a ticket nobody could serve. It can be encoded whatever an error's text was."""
    why = reason.encode("utf-8", "replace").decode()[:4096] or "no reason given"
    return RolloutGroup(ticket.ticket_id, ticket.kind, ticket.problem, np.empty(0, np.int32), (), generator, why)


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


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


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
