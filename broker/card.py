"""The TaskCard as it stands in Redis: a JSON object.

Invariant: a card that was decoded adds up: its parts are its train split, its labels fit its parts and its held-out
split. Refuses to know tasks.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from broker.documents import read_object
from broker.errors import Malformed

MOST_PARTS = 1000


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


def encode_card(card: TaskCard) -> bytes:
    """The same bytes for the same card."""
    return json.dumps(asdict(card), sort_keys=True).encode()


def decode_card(raw: bytes) -> TaskCard:
    """Raises `Malformed`."""
    given = read_object(raw)
    train, held_out = (_size(given.get(name), name) for name in ("train", "held_out"))
    name, content_hash = given.get("name"), given.get("content_hash")
    if not (isinstance(name, str) and isinstance(content_hash, str)):
        raise Malformed("name or content_hash")
    parts = tuple(_part(part) for part in _list(given, "parts"))
    if not 0 < len(parts) <= MOST_PARTS or sum(part.train for part in parts) != train:
        raise Malformed("the parts are not the train split")
    labels = tuple(_label(label, len(parts)) for label in _list(given, "labels"))
    numbers = _list(given, "held_out_labels")
    if len(numbers) != held_out or not all(type(n) is int and 0 <= n < len(labels) for n in numbers):
        raise Malformed("held_out_labels")
    components = _list(given, "components")
    if not all(isinstance(component, str) for component in components):
        raise Malformed("components")
    return TaskCard(name, train, held_out, content_hash, parts, labels, tuple(numbers), tuple(components))


def _part(raw: Any) -> PartCard:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise Malformed("a part")
    weight = raw.get("weight")
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
        raise Malformed("the weight of a part")
    return PartCard(raw["name"], _size(raw.get("train"), "train of a part"), float(weight))


def _label(raw: Any, parts: int) -> tuple[int, str]:
    if not (isinstance(raw, list) and len(raw) == 2 and type(raw[0]) is int and isinstance(raw[1], str)):
        raise Malformed("a label")
    if not 0 <= raw[0] < parts:
        raise Malformed("a label of no part")
    return raw[0], raw[1]


def _size(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise Malformed(f"{name} is no size")
    return value


def _list(given: dict[str, Any], name: str) -> list[Any]:
    value = given.get(name)
    if not isinstance(value, list):
        raise Malformed(name)
    return value
