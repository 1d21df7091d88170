"""What a checkpoint says of itself, read back.

Invariant: a document that was read has the fields that a restart goes by, each of its type; anything else raises
`Malformed` before a tensor is touched. Refuses to know how they are used; more fields than these are welcome.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from broker.documents import read_object
from broker.errors import Malformed
from broker.ledger import Entry
from consumer.history import History


def read_document(raw: bytes) -> dict[str, Any]:
    """The document of a checkpoint. Raises `Malformed` naming the field."""
    document = read_object(raw)
    for name in ALWAYS:
        if name not in document:
            raise Malformed(f"{name} is missing")
    for name, fits in FIELDS.items():
        if name in document and not fits(document[name]):
            raise Malformed(name)
    return document


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _entries(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        return False
    for entry in value:
        Entry.decode(entry)
    return True


def _entry_ids(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(i, str) and re.fullmatch(r"\d+-\d+", i) for i in value.values())


def _digests(value: Any) -> bool:
    """Of files, by their plain names."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in value)
        and all(isinstance(d, str) and re.fullmatch(r"[0-9a-f]{64}", d) for d in value.values())
    )


def _adapts(value: Any) -> bool:
    """What adapters belong to: the digest of a base, and a scale."""
    if value is None:
        return True
    return isinstance(value, dict) and isinstance(value.get("base"), str) and type(value.get("scale")) is float


def _history(value: Any) -> bool:
    History.decode(value, 1, 0)
    return True


ALWAYS = ("step", "sha256")
FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _number,
    "version": _number,
    "sequence": _number,
    "sha256": _digests,
    "entries": _entries,
    "entry_ids": _entry_ids,
    "adapts": _adapts,
    "history": _history,
}
