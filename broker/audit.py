"""What the audit log is told of a group: by its generator the texts, by the learner what became of it, in numbers.

Invariant: an encoded note is never longer than it may be: what is left out of it is counted in it; and `decode_note`
returns a note that satisfies every rule of its class or raises `Malformed`. Nothing in the pipeline reads one. Refuses
to know Redis, and how a note is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from broker.documents import shown
from broker.errors import Malformed
from broker.schema import LARGEST_FLOAT32, MAX_COMPONENTS, MAX_NAME_BYTES

VERSION = 1
LEAST_BYTES, MOST_BYTES = 4096, 1 << 20  # of a note
REASON = 500  # characters of why something failed
PLACE = 24  # bytes beside a text: msgpack's headers and the number of characters that were left out

Count = Annotated[int, Field(ge=0, lt=2**53)]
LATEST = 1e11  # seconds since the epoch: the year 5138, which calendars still know
Seconds = Annotated[float, Field(ge=0, lt=LATEST)]
Reward = Annotated[float, Field(ge=-LARGEST_FLOAT32, le=LARGEST_FLOAT32)]
TicketName = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(max_length=256)]
Label = Annotated[str, Field(max_length=64)]
Used = Literal["trained", "degenerate", "stale", "failed", "evaluated"]


class _Said(BaseModel):
    """A part of a note; it knows its fields by name, so that a note explains itself."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Excerpt(_Said):
    """A text, or its beginning and its end and how many characters lay between."""

    head: str = ""
    left_out: Count = 0
    tail: str = ""

    @staticmethod
    def of(text: str) -> Excerpt:
        """All of it; what is no text (half a surrogate pair) becomes a question mark."""
        return Excerpt(head=clean(text))

    @property
    def size(self) -> int:
        """Bytes of a whole text."""
        return len(self.head.encode())

    def cut(self, limit: int) -> Excerpt:
        """The same in at most `limit` bytes: more of the end than of the beginning, since answers come last."""
        raw = self.head.encode()
        if len(raw) <= limit:
            return self
        begins, ends = limit // 3, limit - limit // 3
        head, tail = (part.decode("utf-8", "ignore") for part in (raw[:begins], raw[len(raw) - ends :]))
        return Excerpt(head=head, left_out=len(self.head) - len(head) - len(tail), tail=tail)


class Span(_Said):
    """Tokens `[start, end)` of a completion were sampled by `policy_version`."""

    policy_version: Count
    start: Count
    end: Count


class Answer(_Said):
    """One completion. `logprob`: mean of its tokens under the policy that sampled them, nats. No reward: no number."""

    text: Excerpt
    tokens: Count
    logprob: float | None
    reward: Reward | None
    components: Annotated[
        dict[Annotated[str, Field(max_length=MAX_NAME_BYTES)], float], Field(max_length=MAX_COMPONENTS)
    ]
    failed: Annotated[str, Field(max_length=REASON)]
    truncated: bool
    spans: tuple[Span, ...]


class Sampling(_Said):
    """What a generator tells: the ticket, its problem, what came of it, and how long that took (seconds)."""

    by: Literal["generator"] = "generator"
    ticket_id: TicketName
    problem: Count
    seed: Count
    min_policy_version: Count
    issued_at: Seconds  # since the epoch, by Redis' clock
    deliveries: Count
    generator: Name
    prompt: Excerpt = Excerpt()  # as the model was given it
    prompt_tokens: Count = 0
    gold: Excerpt = Excerpt()
    level: Label = ""
    failed: Excerpt = Excerpt()
    answers: tuple[Answer, ...] = ()
    answers_left_out: Count = 0
    wait_seconds: Seconds = 0.0  # until the engine held a version that would do
    sample_seconds: Seconds = 0.0  # from the claim's first look at the engine: that wait included
    verify_seconds: Seconds = 0.0
    hand_seconds: Seconds = 0.0  # from the claim to the publication

    def cut(self, limit: int) -> Self:
        """The same in at most `limit` bytes: short texts stay whole, long ones share what is left."""
        bare = [answer.model_copy(update={"text": Excerpt()}) for answer in self.answers]
        kept = _fitting([len(_pack(answer)) + PLACE for answer in bare], limit // 3)
        texts = [self.prompt, self.gold, self.failed, *(answer.text for answer in self.answers[:kept])]
        rest = {"answers": tuple(bare[:kept]), "answers_left_out": self.answers_left_out + len(bare) - kept}
        without = self.model_copy(update=dict.fromkeys(("prompt", "gold", "failed"), Excerpt()) | rest)
        allowed = fair([text.size for text in texts], limit - len(_pack(without)) - PLACE * (len(texts) + 1))
        prompt, gold, failed, *said = (text.cut(size) for text, size in zip(texts, allowed, strict=True))
        answers = tuple(a.model_copy(update={"text": t}) for a, t in zip(bare, said, strict=False))
        changed = {"prompt": prompt, "gold": gold, "failed": failed, "answers": answers}
        return without.model_copy(update=changed)


class Share(_Said):
    """What the learner made of one rollout. Ratios are π/μ of its tokens as they were trained on; the last three are
    fractions of its tokens. None: not trained on, or not a number."""

    reward: Reward
    tokens: Count
    advantage: float | None = None
    ratio_mean: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    clipped: float | None = None
    truncated: float | None = None
    masked: float | None = None


class Use(_Said):
    """What the learner tells: which verdict, at which step and version, and the numbers of each rollout.

    `generator` and `sample_seconds` are the group's, and name the attempt at the ticket that it was.
    """

    by: Literal["learner"] = "learner"
    ticket_id: TicketName
    verdict: Used
    reason: Annotated[str, Field(max_length=REASON)] = ""
    generator: Name = ""
    sample_seconds: Seconds = 0.0
    published_at: Seconds  # since the epoch, by Redis' clock
    step: Count  # that it was trained in, or that was the last one when it was dropped
    version: Count  # the learner's at use
    staleness: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    rollouts: tuple[Share, ...] = ()
    rollouts_left_out: Count = 0

    def cut(self, limit: int) -> Self:
        """The same in at most `limit` bytes."""
        without = self.model_copy(update={"rollouts": (), "rollouts_left_out": 2**52})
        kept = _fitting([len(_pack(rollout)) for rollout in self.rollouts], limit - len(_pack(without)) - PLACE)
        left = self.rollouts_left_out + len(self.rollouts) - kept
        return self.model_copy(update={"rollouts": self.rollouts[:kept], "rollouts_left_out": left})


Note = Sampling | Use
_NOTE: TypeAdapter[Note] = TypeAdapter(Annotated[Note, Field(discriminator="by")])


def encode_note(note: Note, limit: int) -> bytes:
    """A note as bytes, at most `limit` of them (`LEAST_BYTES` or more)."""
    payload = _pack(note, VERSION)
    return payload if len(payload) <= limit else _pack(note.cut(limit - 2), VERSION)


def decode_note(payload: bytes) -> Note:
    """Raises `Malformed`."""
    if len(payload) > MOST_BYTES:
        raise Malformed("a note that is too long")
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {type(error).__name__}") from None
    if not isinstance(value, tuple) or len(value) != 2:
        raise Malformed("not a note")
    if value[0] != VERSION:
        raise Malformed(f"schema version {shown(value[0])}, this side speaks {VERSION}")
    try:
        return _NOTE.validate_python(value[1])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Malformed(f"{clean(where)[:80]!r}: {first['type']}") from None


def clean(text: str) -> str:
    """Text that every encoder takes."""
    return text.encode("utf-8", "replace").decode()


def fair(sizes: Sequence[int], room: int) -> list[int]:
    """`room` shared among sizes: whoever needs less than an equal share leaves the rest of it to the others."""
    out = [0] * len(sizes)
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        out[index] = min(sizes[index], max(0, room) // (len(sizes) - place))
        room -= out[index]
    return out


def _fitting(sizes: Sequence[int], room: int) -> int:
    """How many of the first of them have room."""
    return sum(total <= room for total in itertools.accumulate(sizes))


def _pack(part: BaseModel, version: int | None = None) -> bytes:
    plain: Any = part.model_dump()
    packed: bytes = msgpack.packb(plain if version is None else (version, plain), use_bin_type=True)
    return packed
