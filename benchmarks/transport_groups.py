"""Groups of a given size, as an engine's completions make them.

Invariant: every completion has tokens of a real vocabulary and log-probs of its own; the same arguments give the same
group. Refuses to know who sends them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from broker.schema import Floats, Ints, Rollout, RolloutGroup, VersionSpan

SIZE, VOCABULARY, PROMPT = 8, 49152, 64  # completions, tokens
SAID = 64 * SIZE + 320  # bytes of a group beside its tokens and log-probs, about


def length(size: int) -> int:
    """Tokens of a completion, of which 8 make a group of about `size` bytes on our wire."""
    return max(1, (size - SAID) // (8 * SIZE))


def size_of(tokens: int) -> int:
    """The reverse: about how many bytes a group has whose completions have so many tokens."""
    return SAID + 8 * SIZE * tokens


@lru_cache(maxsize=4)
def samples(size: int) -> tuple[tuple[Ints, Floats], ...]:
    """Tokens and log-probs of each completion. They cost more to draw than to send, so they are drawn once."""
    chance, tokens = np.random.default_rng(0), length(size)
    return tuple(
        (
            chance.integers(0, VOCABULARY, tokens).astype(np.int32),
            -chance.exponential(1.0, tokens).astype(np.float32),
        )
        for _ in range(SIZE)
    )


@lru_cache(maxsize=64)
def rollouts(size: int, version: int, degenerate: bool) -> tuple[Rollout, ...]:
    """Those of one group: half of them solve the problem, or none does."""
    return tuple(
        Rollout(
            tokens,
            logprobs,
            (VersionSpan(version, 0, len(tokens)),),
            reward := float(not degenerate and number % 2),
            {"correct": reward, "formatted": 1.0},
            answer=number,
        )
        for number, (tokens, logprobs) in enumerate(samples(size))
    )


@lru_cache(maxsize=4)
def prompt() -> Any:
    """Its tokens (PROMPT,)."""
    return np.random.default_rng(1).integers(0, VOCABULARY, PROMPT).astype(np.int32)


def group(size: int, ticket_id: str, problem: int, version: int) -> RolloutGroup:
    """The answer to a ticket: every other one teaches nothing."""
    made = rollouts(size, version, degenerate(ticket_id))
    return RolloutGroup(ticket_id, "train", problem, prompt(), made, "host-1", "", 1.25)


def degenerate(ticket_id: str) -> bool:
    """Whether the group of this ticket is: that of every other one, by its number."""
    return int(ticket_id[1:11]) % 2 == 1


def lists(size: int) -> list[dict[str, Any]]:
    """The same completions as lists of Python's numbers, nothing else in them than a trainer needs."""
    before = prompt().tolist()
    return [
        {
            "input_ids": before + one.tokens.tolist(),
            "logprobs": one.behaviour_logprobs.tolist(),
            "reward": one.reward,
            "group_id": "t0000000001p0000000017",
            "finished": not one.truncated,
        }
        for one in rollouts(size, 0, False)
    ]


def texts(size: int) -> list[dict[str, Any]]:
    """And with what else one neighbour sends of each: its text, labels, and the reference's log-probs."""
    return [
        {
            **one,
            "labels": [-100] * PROMPT + one["input_ids"][PROMPT:],
            "ref_logprobs": one["logprobs"],
            "n_predicted": 4 * length(size),
            "text": "word " * len(one["input_ids"]),
        }
        for one in lists(size)
    ]
