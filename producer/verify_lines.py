"""The lines that go between the verifier pool and its workers: JSON, one request or answer a line.

Invariant: an answer that was decoded is a verdict (finite floats, bounded), whatever ran in the worker; everything else
raises `Malformed`. Refuses to know who sends them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from broker.errors import Malformed
from broker.schema import MAX_COMPONENTS, MAX_NAME_BYTES
from producer.tasks.base import Problem, Verdict

MAX_REASON = 500
MAX_ANSWER = 200  # characters of an answer's normal form; a longer one travels as its digest
LARGEST = 3.4028234663852886e38  # of a float32, in which rewards travel


def encode_request(problem: Problem, texts: Sequence[str]) -> bytes:
    """`[prompt, gold, level, part, [text, …]]`."""
    return _line([problem.prompt, problem.gold, problem.level, problem.part, list(texts)])


def decode_request(line: bytes) -> tuple[Problem, list[str]]:
    """Raises `Malformed`."""
    prompt, gold, level, part, texts = _fields(line, 5)
    _check(isinstance(prompt, str) or _conversation(prompt), "prompt")
    _check(isinstance(gold, str) and isinstance(level, str), "gold or level")
    _check(type(part) is int and part >= 0, "part")
    _check(isinstance(texts, list) and all(isinstance(text, str) for text in texts), "texts")
    messages = prompt if isinstance(prompt, str) else tuple((role, content) for role, content in prompt)
    return Problem(messages, gold, level, part), texts


def encode_answer(verdict: Verdict) -> bytes:
    """`[reward, components, failed, answer]`."""
    return _line([verdict.reward, dict(verdict.components), verdict.failed, verdict.answer])


def decode_answer(line: bytes) -> Verdict:
    """Raises `Malformed`."""
    reward, components, failed, answer = _fields(line, 4)
    _check(_finite(reward), "reward")
    _check(isinstance(components, dict) and len(components) <= MAX_COMPONENTS, "components")
    _check(all(_name(name) and _finite(value) for name, value in components.items()), "components")
    _check(isinstance(failed, str) and len(failed) <= MAX_REASON, "failed")
    _check(isinstance(answer, str) and len(answer) <= MAX_ANSWER, "answer")
    return Verdict(float(reward), {name: float(value) for name, value in components.items()}, failed, answer)


def encode_greeting(reason: str, network: str) -> bytes:
    """`[why the verifier cannot be loaded, why the worker still has a network]`, both empty where all is well."""
    return _line([reason, network])


def decode_greeting(line: bytes) -> tuple[str, str]:
    """Raises `Malformed`."""
    reason, network = _fields(line, 2)
    _check(isinstance(reason, str) and isinstance(network, str), "greeting")
    return reason, network


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _fields(line: bytes, count: int) -> list[Any]:
    _check(line.endswith(b"\n"), "the line has no end")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {type(error).__name__}") from None
    _check(isinstance(value, list) and len(value) == count, f"expected {count} fields")
    return list(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST  # NaN fails every comparison


def _name(text: str) -> bool:
    """It can travel on: JSON may hold halves of characters, which UTF-8 has no bytes for."""
    return text.isprintable() and len(text.encode()) <= MAX_NAME_BYTES


def _conversation(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn) for turn in prompt
    )


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(what)
