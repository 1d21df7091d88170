"""What travels: tickets and rollout groups, as msgpack with raw int32/float32 arrays.

Invariant: the same value is the same bytes, and text never travels. Refuses to know what a prompt or an answer means,
and to read: that is `broker.decoding`, which takes nobody's word for anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 2
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


class VersionSpan(NamedTuple):
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


def encode_group(group: RolloutGroup) -> bytes:
    """One rollout group as bytes; arrays are raw little-endian int32/float32, copied once."""
    rollouts = [
        [
            np.ascontiguousarray(r.tokens, INT).data,
            np.ascontiguousarray(r.behaviour_logprobs, FLOAT).data,
            r.spans,
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


def tombstone(ticket: Ticket, reason: str, generator: str = "") -> RolloutGroup:
    """The group that settles a ticket nobody could serve. It can be encoded whatever an error's text was."""
    why = reason.encode("utf-8", "replace").decode()[:4096] or "no reason given"
    return RolloutGroup(ticket.ticket_id, ticket.kind, ticket.problem, np.empty(0, np.int32), (), generator, why)


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
