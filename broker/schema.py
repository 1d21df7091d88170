"""What travels: tickets and rollout groups, each as one msgpack array, a group's numbers as raw int32 and float32.

Invariant: the same value is the same bytes, and text never travels. The forms say what each field may be; whoever reads
takes nobody's word for it: that is `broker.decoding`. Refuses to know what a prompt or an answer means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

SCHEMA_VERSION = 3
MAX_COMPONENTS, MAX_NAME_BYTES = 32, 64  # of the reward of a rollout
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

INT, FLOAT = np.dtype("<i4"), np.dtype("<f4")  # on the wire

Kind = Literal["train", "eval"]
KINDS: tuple[Kind, ...] = ("eval", "train")  # evaluation first: it is small and somebody looks at it

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Version = Annotated[int, Meta(ge=0, lt=2**31)]
Place = Annotated[int, Meta(ge=0, lt=2**31)]
Real = Annotated[float, Meta(ge=-LARGEST_FLOAT32, le=LARGEST_FLOAT32)]  # no NaN: it fails every comparison
Components = Annotated[dict[Annotated[str, Meta(max_length=MAX_NAME_BYTES)], Real], Meta(max_length=MAX_COMPONENTS)]


class Ticket(Struct, frozen=True, gc=False):
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

    policy_version: Version
    start: Place
    end: Place


class Rollout(Struct, frozen=True, gc=False):
    """One completion with what was true of it when it was sampled.

    `tokens` (T,) int32, `behaviour_logprobs` (T,) float32 under the sampling temperature, `spans` cover `[0, T)` in
    order. `answer` numbers the different declared answers of its group: equal numbers, equal answers; -1: none.
    """

    tokens: Ints
    behaviour_logprobs: Floats
    spans: tuple[VersionSpan, ...]
    reward: float
    components: dict[str, float] = {}
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


class RolloutGroup(Struct, frozen=True, dict=True):
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


class Form(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """All of these fields in their order, and no others; the first of a message is its schema version."""


class TicketForm(Form, frozen=True, tag=SCHEMA_VERSION):
    """A ticket on the wire."""

    ticket_id: Name
    problem: Count
    seed: Count
    min_policy_version: Count
    kind: Kind


class RolloutForm(Form, frozen=True):
    """A rollout on the wire; `GroupForm.numbers` has as many tokens and log-probs of it as its spans cover."""

    spans: Annotated[tuple[VersionSpan, ...], Meta(min_length=1)]
    reward: Real
    components: Components
    truncated: bool
    answer: Annotated[int, Meta(ge=-1, lt=2**31)]


class GroupForm(Form, frozen=True, tag=SCHEMA_VERSION):
    """A group on the wire.

    `numbers` is all there are, little-endian: the prompt (`prompt_tokens`,) int32, the tokens of each completion, then
    the log-probs of each, float32. `padding` has them begin at a multiple of four bytes, so that whoever has the
    message has the arrays.
    """

    ticket_id: Name
    kind: Kind
    problem: Count
    prompt_tokens: Place
    rollouts: tuple[RolloutForm, ...]
    generator: Annotated[str, Meta(max_length=256)]
    failed: Annotated[str, Meta(max_length=4096)]
    sample_seconds: Annotated[float, Meta(ge=0, le=LARGEST_FLOAT32)]
    padding: Annotated[memoryview, Meta(max_length=3)]
    numbers: memoryview


def encode_ticket(ticket: Ticket) -> bytes:
    """One ticket as bytes."""
    said = ticket.ticket_id, ticket.problem, ticket.seed, ticket.min_policy_version, ticket.kind
    return _ENCODER.encode(TicketForm(*said))


def encode_group(group: RolloutGroup) -> bytes:
    """One rollout group as bytes; its arrays are copied once.

    Raises `ValueError` for what is no text, and for a completion that has not as many tokens as log-probs, or spans
    that end elsewhere; `TypeError` for values of another kind than their fields.
    """
    numbers, sampled = len(group.prompt), group.rollouts
    for r in sampled:
        if not (len(r.tokens) == len(r.behaviour_logprobs) == (r.spans[-1].end if r.spans else 0)):
            raise ValueError("tokens, behaviour_logprobs and spans are not of one length")
        numbers += 2 * len(r.tokens)
    forms = tuple([RolloutForm(r.spans, r.reward, r.components, r.truncated, r.answer) for r in sampled])
    said = (group.ticket_id, group.kind, group.problem, len(group.prompt), forms, group.generator, group.failed)
    message = _ENCODER.encode(GroupForm(*said, group.sample_seconds, _NOTHING, _NOTHING))
    prompt = np.ascontiguousarray(group.prompt, INT)
    tokens = [np.ascontiguousarray(r.tokens, INT) for r in sampled]
    logprobs = [np.ascontiguousarray(r.behaviour_logprobs, FLOAT) for r in sampled]
    return _completed(message, numbers, (prompt, *tokens, *logprobs))


def _completed(message: bytes, numbers: int, arrays: Sequence[Any]) -> bytes:
    """A form whose padding and numbers are empty, with what belongs there: no other way copies them only once."""
    head = message[:-4]  # each of the two is a type and a length, of one byte each
    padding = -(len(head) + 2 + 5) % 4  # what comes before the numbers: these bytes, and those that say how many
    return b"".join([head, b"\xc4%c%b\xc6" % (padding, bytes(padding)), (4 * numbers).to_bytes(4, "big"), *arrays])


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's. Raises `TypeError` for anything else."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be sent")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_NOTHING = memoryview(b"")


def tombstone(ticket: Ticket, reason: str, generator: str = "") -> RolloutGroup:
    """The group that settles a ticket nobody could serve. It can be encoded whatever an error's text was."""
    why = reason.encode("utf-8", "replace").decode()[:4096] or "no reason given"
    return RolloutGroup(ticket.ticket_id, ticket.kind, ticket.problem, np.empty(0, np.int32), (), generator, why)
