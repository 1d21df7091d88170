"""What a task is: problems in two splits, and the name of the function that says what is true of an answer.

Invariant: everything here is data that a worker process can be sent; a verifier is a name, `module:function`, never a
closure. Refuses to know tokens, engines and advantages: reward is data, what is made of it is the learner's business.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from broker.schema import TaskCard

Messages = tuple[tuple[str, str], ...]  # (role, content), oldest first


@dataclass(frozen=True)
class Problem:
    """One question and its answer. `prompt` is text (one user turn) or a conversation; `level` groups evaluations."""

    prompt: str | Messages
    gold: str
    level: str = ""

    @property
    def messages(self) -> Messages:
        """The prompt as a conversation."""
        return (("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion; `failed`: why it could say nothing (hang, crash), and reward is 0."""

    reward: float
    components: dict[str, float] = field(default_factory=dict)
    failed: str = ""


Verifier = Callable[[str, Problem], Verdict]


class Task(Protocol):
    """Problems and the verifier that belongs to them."""

    @property
    def name(self) -> str:
        """As in `[task] name`."""

    @property
    def train(self) -> Sequence[Problem]:
        """Problems that tickets may name for training."""

    @property
    def held_out(self) -> Sequence[Problem]:
        """Problems for evaluation only."""

    @property
    def verifier(self) -> str:
        """`module:function` of a pure `Verifier`; its module imports nothing heavy."""

    def card(self) -> TaskCard:
        """What dispatch may know."""


@dataclass(frozen=True)
class FixedTask:
    """A task whose problems are all known at the start."""

    name: str
    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    verifier: str

    def card(self) -> TaskCard:
        """Sizes, levels and a hash over every problem in order: no two generators mean different ones by an index."""
        levels = tuple(sorted({p.level for p in (*self.train, *self.held_out)} - {""}))
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            digest.update(json.dumps([[p.messages, p.gold, p.level] for p in split]).encode())
            digest.update(b"\n")
        return TaskCard(self.name, len(self.train), len(self.held_out), digest.hexdigest(), levels)


def resolve(verifier: str) -> Verifier:
    """The function behind a verifier's name. Raises `ImportError` or `AttributeError` for a name that leads nowhere."""
    module, _, function = verifier.partition(":")
    found: Verifier = getattr(importlib.import_module(module), function)
    return found
