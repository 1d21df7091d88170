"""What a task is: problems in two splits, and the names of the functions that say what is true of an answer.

Invariant: everything here is data that a worker process can be sent; a verifier is a name, `module:function` or
`file.py:Class.function`, never a closure. Refuses to know tokens, engines and advantages: reward is data, what is made
of it is the learner's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from broker.card import PartCard, TaskCard

Messages = tuple[tuple[str, str], ...]  # (role, content), oldest first


@dataclass(frozen=True)
class Problem:
    """One question and its answer.

    `prompt` is text (one user turn) or a conversation; `gold` the answer, or JSON where its verifier reads that;
    `level` groups evaluations; `part` says which of its task's parts it belongs to.
    """

    prompt: str | Messages
    gold: str
    level: str = ""
    part: int = 0

    @property
    def messages(self) -> Messages:
        """The prompt as a conversation."""
        return (("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion; `failed`: why it could say nothing (hang, crash), and reward is 0.

    `answer` is the declared answer in a form in which equal ones look equal, as far as that is known; '' for none.
    """

    reward: float
    components: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""
    answer: str = ""


Verifier = Callable[..., Verdict]  # of (completion, problem) and the options of its scoring


@dataclass(frozen=True)
class Scoring:
    """How completions are scored: `verifier` with `options` as keyword arguments (JSON), and what it has to say.

    `source`: the digest of a file of the user's that has a say in it.
    """

    verifier: str
    options: Mapping[str, Any] = field(default_factory=dict)
    components: tuple[str, ...] = ("correct",)
    source: str = ""


@dataclass(frozen=True)
class Part:
    """Problems of one kind: a task has one, a mixture several.

    `reward` gives each component its weight; none: the verifier's own reward. `weight` is the part's share of tickets.
    """

    name: str
    scoring: Scoring
    reward: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0


class Task(Protocol):
    """Problems and the verifiers that belong to them."""

    @property
    def name(self) -> str:
        """As in `[task] name`."""

    @property
    def train(self) -> Sequence[Problem]:
        """Problems that tickets may name for training: those of the first part, then those of the next."""

    @property
    def held_out(self) -> Sequence[Problem]:
        """Problems for evaluation only, in an order in which the first few stand for all."""

    @property
    def parts(self) -> Sequence[Part]:
        """What `Problem.part` counts."""

    def card(self) -> TaskCard:
        """What dispatch may know."""


@dataclass(frozen=True)
class FixedTask:
    """A task whose problems are all known at the start."""

    name: str
    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    parts: tuple[Part, ...]

    def card(self) -> TaskCard:
        """Sizes, levels and a hash over every problem in order: no two generators mean different ones by an index."""
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            digest.update(json.dumps([[p.messages, p.gold, p.level, p.part] for p in split]).encode())
            digest.update(b"\n")
        digest.update(json.dumps([_identity(part) for part in self.parts], sort_keys=True).encode())
        labels = sorted({(p.part, p.level) for p in self.held_out})
        number = {label: i for i, label in enumerate(labels)}
        components = {name for part in self.parts for name in (*part.scoring.components, *part.reward)}
        return TaskCard(
            name=self.name,
            train=len(self.train),
            held_out=len(self.held_out),
            content_hash=digest.hexdigest(),
            parts=tuple(
                PartCard(part.name, sum(p.part == i for p in self.train), part.weight)
                for i, part in enumerate(self.parts)
            ),
            labels=tuple(labels),
            held_out_labels=tuple(number[p.part, p.level] for p in self.held_out),
            components=tuple(sorted(components)),
        )


def _identity(part: Part) -> dict[str, Any]:
    """What makes a part the same everywhere; a user's file may lie elsewhere on another machine."""
    said = asdict(part)
    if part.scoring.source:
        said["scoring"]["options"] = {k: Path(str(v)).name for k, v in part.scoring.options.items()}
    return said
