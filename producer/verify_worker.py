"""A verifier's process: reads groups from the socket it has for standard input, answers completion by completion.

Invariant: it outlives neither its parent nor its limits: the end of its input ends it, a kernel alarm ends a call that
runs on when nobody is left to kill it, and memory is capped. Refuses to know the pool; loads its own verifier only.

A request is a line of JSON, `[prompt, gold, level, [text, …]]`; each text is answered by a line of JSON,
`[reward, components, failed]`. Before the first request goes a string: empty, or why the verifier cannot be loaded.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys

from broker.schema import MAX_COMPONENTS, MAX_NAME_BYTES
from producer.tasks.base import Problem, Verdict, Verifier, resolve

MEMORY_BYTES = 4 << 30
ALARM_GRACE = 1.0  # the parent kills first, if there is one
MAX_REASON = 500


def main() -> None:
    """Serve until the input ends."""
    verifier, seconds = sys.argv[1], float(sys.argv[2])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a verifier that reads its standard input shall not eat requests
    if sys.platform == "linux":  # elsewhere the kernel does not keep this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        function = resolve(verifier)
    except Exception as error:  # whatever an import may raise is the pool's to report
        replies.write(_line(_reason(error)))
        return
    replies.write(_line(""))
    for line in requests:
        prompt, gold, level, texts = json.loads(line)
        messages = prompt if isinstance(prompt, str) else tuple((role, content) for role, content in prompt)
        for text in texts:
            signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_GRACE)  # no handler: the kernel ends us
            verdict = judge(function, text, Problem(messages, gold, level))
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(_line([verdict.reward, verdict.components, verdict.failed]))


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
    return Verdict(reward, components, verdict.failed[:MAX_REASON])


def _name(name: object) -> str:
    """As much of it as travels."""
    return str(name).encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON]


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


if __name__ == "__main__":
    main()
