"""A verifier's process: reads groups from the socket it has for standard input, answers completion by completion.

Invariant: it outlives neither its parent nor its limits: the end of its input ends it, a kernel alarm ends a call that
runs on when nobody is left to kill it, and what it may use up is set (`producer/confine.py`) before the verifier is
loaded. Refuses to know the pool; loads its own verifiers only.

Its verifiers, one for each part of a task, are named on its command line, with their options. Each text of a request is
answered by a line; before the first request goes a greeting (`producer/verify_lines.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
from functools import partial

from broker.schema import MAX_COMPONENTS, MAX_NAME_BYTES
from producer.confine import allow_processor, confine
from producer.tasks.base import Problem, Verdict, Verifier
from producer.tasks.named import resolve
from producer.verify_lines import (
    MAX_ANSWER,
    MAX_REASON,
    decode_request,
    encode_answer,
    encode_greeting,
)

ALARM_GRACE = 1.0  # the parent kills first, if there is one


def main() -> None:
    """Serve until the input ends."""
    named, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a verifier that reads its standard input shall not eat requests
    network = confine()
    try:
        functions = [partial(resolve(name), **options) for name, options in named]
    except Exception as error:  # whatever an import may raise is the pool's to report
        replies.write(encode_greeting(_reason(error), network))
        return
    replies.write(encode_greeting("", network))
    for line in requests:
        problem, texts = decode_request(line)
        for text in texts:
            # No handlers: the kernel ends us. The second limit also stands when a verifier uses the one alarm itself.
            signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_GRACE)
            allow_processor(seconds + ALARM_GRACE)
            verdict = judge(functions[problem.part], text, problem)
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(encode_answer(verdict))


def judge(function: Verifier, text: str, problem: Problem) -> Verdict:
    """The verdict in the form that travels: finite floats, or why there are none."""
    try:
        verdict = function(text, problem)
        reward = float(verdict.reward)
        components = {_name(name): float(value) for name, value in verdict.components.items()}
    except Exception as error:  # a verifier that raises has failed on this completion and on no other
        return Verdict(0.0, {"failed": 1.0}, _reason(error))
    if not all(map(math.isfinite, (reward, *components.values()))) or len(components) > MAX_COMPONENTS:
        return Verdict(0.0, {"failed": 1.0}, "the verifier's reward or a component of it is not a finite number")
    return Verdict(reward, components, verdict.failed[:MAX_REASON], _short(verdict.answer))


def _short(answer: str) -> str:
    return answer if len(answer) <= MAX_ANSWER else hashlib.sha256(answer.encode("utf-8", "replace")).hexdigest()


def _name(name: object) -> str:
    """As much of it as travels."""
    shown = "".join(char for char in str(name) if char.isprintable())
    return shown.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON]


if __name__ == "__main__":
    main()
