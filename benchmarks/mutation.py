"""Broken messages: what a decoder may be handed by an accident, another version, or somebody who means harm.

Invariant: a function of the random numbers alone, so that a seed names an input. Refuses to know who decodes.
"""

from __future__ import annotations

import json
import random
from typing import Any

import msgpack

LONGEST = 1 << 16
# Beginnings of what makes parsers run out of memory, depth or patience.
BOMBS = (
    b"[" * 50_000,
    b'{"a":' * 20_000,
    b"\x91" * 50_000,
    b"\x81\xa1a" * 20_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"9" * 60_000,
    b"[1e" + b"9" * 400 + b"]",
    b"a = " + b"[" * 30_000,
    b"a." * 20_000 + b"a = 1",
    b'"' + b"\\u0000" * 10_000 + b'"',
    b"",
)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**53, 2**63 - 1, 2**64 - 1, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "\0", "\u202e", "é" * 40, "x" * 5000, "../../etc/passwd", [], {}, [[]], {"a": {}}, [0] * 50),
)


def mutated(chance: random.Random, good: bytes) -> bytes:
    """`good`, broken: another value somewhere inside, other bytes, or something else altogether."""
    kind = chance.random()
    if kind < 0.55:
        return _with_another_value(chance, good)
    if kind < 0.95:
        return _with_other_bytes(chance, good)
    return chance.choice(BOMBS) if kind < 0.97 else chance.randbytes(chance.randint(0, 300))


def _with_other_bytes(chance: random.Random, good: bytes) -> bytes:
    raw = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(raw) + 1), chance.randint(1, 8)
        match chance.randrange(5):
            case 0:
                raw[at : at + 1] = chance.randbytes(1)
            case 1:
                del raw[at : at + size]
            case 2:
                raw[at:at] = chance.randbytes(size)
            case 3:
                raw[at:at] = raw[at : at + chance.randint(1, 200)] * chance.randint(1, 5)
            case _:
                del raw[at:]
    return bytes(raw[:LONGEST])


def _with_another_value(chance: random.Random, good: bytes) -> bytes:
    """The message still is one, as its format goes; a value in it is not what it was."""
    for load, dump in ((json.loads, _json), (msgpack.unpackb, msgpack.packb)):
        try:
            value = load(good)
        except (ValueError, msgpack.UnpackException):
            continue
        if isinstance(value, list | dict):
            packed: bytes = dump(_changed(chance, value))
            return packed + (b"\n" if good.endswith(b"\n") else b"")
    return _with_another_line(chance, good)


def _json(value: Any) -> bytes:
    return json.dumps(value, default=repr).encode()


def _changed(chance: random.Random, value: Any) -> Any:
    """One place in it is replaced, left out or doubled."""
    if not isinstance(value, list | dict) or not value or chance.random() < 0.15:
        return chance.choice(ODD)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        match chance.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], _changed(chance, value[at]), *value[at + 1 :]]
    key = chance.choice(list(value))
    match chance.randrange(5):
        case 0:
            return {k: v for k, v in value.items() if k != key}
        case 1:
            return value | {chance.choice(("", "extra", "x" * 100)): chance.choice(ODD)}
        case _:
            return value | {key: _changed(chance, value[key])}


def _with_another_line(chance: random.Random, good: bytes) -> bytes:
    """Text in lines (TOML, metrics): a line is replaced, moved, or gets another value."""
    lines = good.split(b"\n")
    at = chance.randrange(len(lines))
    head = lines[at].rpartition(b" ")[0]
    value = _json(chance.choice(ODD))
    lines[at] = chance.choice((head + b" " + value, head, lines[chance.randrange(len(lines))], value))
    return b"\n".join(lines)[:LONGEST]
