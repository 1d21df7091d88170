"""vLLM's multi-process executor for a CPU: it sleeps while its workers compute, instead of spinning.

Invariant: nothing but the way of waiting differs from vLLM's own. Refuses to know weights, requests and versions.

On a CPU the engine's core and its workers live on the same few cores: a core that spins takes half of one away from the
workers that it waits for, and from the learner beside them. A worker's notice can be lost (its socket drops what it
cannot send at once), and then vLLM looks again after 5 s only, which a spinning reader never notices: we look sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

LOOK_AGAIN_MS = 10


class QuietExecutor(MultiprocExecutor):
    """Passed to vLLM by name, as its `distributed_executor_backend`."""

    def _init_executor(self) -> None:
        super()._init_executor()
        for queue in self.response_mqs:
            condition: Any = getattr(queue, "_spin_condition", None)
            if condition is not None:
                condition.busy_loop_s = 0.0  # from the first look on, wait for the writer's notice
                condition.wait = _briefly(condition.wait)


def _briefly(wait: Callable[[int | None], None]) -> Callable[..., None]:
    def brief(timeout_ms: int | None = None) -> None:
        wait(LOOK_AGAIN_MS if timeout_ms is None else min(timeout_ms, LOOK_AGAIN_MS))

    return brief
