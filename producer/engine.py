"""What a generator asks of an engine, whichever library samples.

Invariant: the log-prob of every token is that of the policy version in its span, under the temperature that sampled it.
Refuses to know tickets, rewards and Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from broker.schema import Floats, Ints, VersionSpan


class Unsampled(Exception):
    """The engine has not answered: not within the time it has (`hung`), or it was not even asked (`asked`)."""

    def __init__(self, reason: str, *, hung: bool = False, asked: bool = True) -> None:
        self.hung, self.asked = hung, asked
        super().__init__(reason)


@dataclass(frozen=True)
class Completion:
    """Raw tokens of one answer: `tokens` (T,) int32, `logprobs` (T,) float32, spans covering `[0, T)`."""

    tokens: Ints
    logprobs: Floats
    spans: tuple[VersionSpan, ...]
    truncated: bool


class Engine(Protocol):
    """An inference engine whose weights can be replaced while it runs."""

    @property
    def slots(self) -> int:
        """Groups it can sample at once."""

    @property
    def policy_version(self) -> int:
        """Version of the weights it holds; -1 before the first refresh."""

    @property
    def still_seconds(self) -> float:
        """Seconds for which it has sampled nothing because weights were being replaced, all refreshes together."""

    @property
    def alive(self) -> bool:
        """False once nothing but another `start` can make it sample again."""

    async def start(self) -> None:
        """Load the model. Raises `Refused` for a model that cannot be served as configured."""

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        """G completions of `prompt` (P,) in one request. Cancelling the task aborts the request."""

    async def refresh(self, folder: Path, policy_version: int) -> None:
        """Take the weights in `folder` (Hugging Face layout). On failure the old weights serve on and it raises."""

    async def stop(self) -> None:
        """Free the device and end every child process."""
