"""One candidate: locks the process that it is in, runs the program, calls its function, says what came back.

Invariant: not a byte of the program is run before the lock has closed, and what was expected is not in this process: it
is told a program, the name of a function and the arguments. Refuses to know why; whoever listens believes none of it.

On the channel come back `locked` (or `open` and why not) and then a line for each call: `= literal`, or `! Name` of the
exception that it raised. The candidate can write there as well, which is worth what its function's results are worth.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from producer.sandbox.literals import written
from producer.sandbox.lock import lock

LOCKED, OPEN = "locked", "open"
NAME = "candidate"
SOLUTION = "Solution"  # the class whose method counts as the function


def encode(code: str, entry: str, arguments: Sequence[str], seconds: float) -> bytes:
    """A request; each of `arguments` is a tuple as a literal."""
    return json.dumps([code, entry, list(arguments), seconds]).encode()


def run(channel: int, parent: int) -> None:
    """Read the request up to its end, then serve it. The process is good for nothing afterwards."""
    code, entry, arguments, seconds = json.loads(_all_of(channel))
    calls = [ast.literal_eval(text) for text in arguments]
    with contextlib.suppress(OSError):  # a courtesy: where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        lock(seconds, parent)
    except OSError as error:
        _say(channel, f"{OPEN} {error}")
        return
    _say(channel, LOCKED)
    random.seed(0)  # the same program, the same verdict
    function = _function(code, entry)
    for given in calls:
        _say(channel, _outcome(function, given))


def _function(code: str, entry: str) -> Callable[..., object]:
    """The program's function; where the program itself raises, one that raises the same.

    A program that exits, or asks for input that nobody gives, after it has defined the function has defined it.
    """
    module = ModuleType(NAME)
    sys.modules[NAME] = module  # where dataclasses look for their annotations
    try:
        try:
            exec(compile(code, f"<{NAME}>", "exec", dont_inherit=True), module.__dict__)
        except (SystemExit, EOFError):
            if not {entry, SOLUTION} & module.__dict__.keys():
                raise
        return _found(module, entry)
    except BaseException as error:
        failure = error

        def function(*_: object) -> object:
            raise failure

    return function


def _found(module: ModuleType, entry: str) -> Callable[..., object]:
    """The function, or the method of `Solution`, of which each call has one of its own. Raises `AttributeError`."""
    solution = getattr(module, SOLUTION, None)
    if hasattr(module, entry) or not hasattr(solution, entry):
        function: Callable[..., object] = getattr(module, entry)
        return function
    return lambda *given: getattr(module.Solution(), entry)(*given)


def _outcome(function: Callable[..., object], given: tuple[object, ...]) -> str:
    try:
        return f"= {written(function(*given))}"
    except BaseException as error:  # an exit is no way out either
        return f"! {type(error).__name__}"


def _all_of(channel: int) -> bytes:
    parts = list[bytes]()
    while part := os.read(channel, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def _say(channel: int, line: str) -> None:
    data = line.encode("ascii", "replace") + b"\n"
    while data:
        data = data[os.write(channel, data) :]
