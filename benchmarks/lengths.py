"""Groups to train on whose lengths are those of GSM8K, or any; their tokens are random.

Invariant: a function of the seed. Refuses to know who trains on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from broker.schema import Rollout, RolloutGroup, VersionSpan

HISTOGRAM = Path(__file__).with_name("gsm8k_lengths.json")
GROUP_SIZE = 8
Draw = Callable[[np.random.Generator], tuple[int, list[int]]]  # length of a prompt, and of its completions


def gsm8k() -> Draw:
    """GSM8K's prompts, and for each eight of the answers that prompts of its length have."""
    document = json.loads(HISTOGRAM.read_text())
    cell, counts = document["cell"], np.array(document["counts"])

    def draw(rng: np.random.Generator) -> tuple[int, list[int]]:
        prompt = rng.choice(counts[:, 0], p=counts[:, 2] / counts[:, 2].sum())
        alike = counts[counts[:, 0] == prompt]
        answers = rng.choice(alike[:, 1], GROUP_SIZE, p=alike[:, 2] / alike[:, 2].sum())
        return int(prompt * cell + rng.integers(cell)), (answers * cell + rng.integers(1, cell, GROUP_SIZE)).tolist()

    return draw


def even() -> Draw:
    """Prompts of 32 to 256 tokens, answers of 16 to 512, any length as likely."""
    return lambda rng: (int(rng.integers(32, 257)), rng.integers(16, 513, GROUP_SIZE).tolist())


def short() -> Draw:
    """Of a few tokens."""
    return lambda rng: (int(rng.integers(2, 9)), rng.integers(1, 17, GROUP_SIZE).tolist())


LENGTHS: dict[str, Callable[[], Draw]] = {"GSM8K": gsm8k, "even": even, "short": short}


def groups_of(draw: Draw, seed: int, count: int, vocabulary: int) -> list[RolloutGroup]:
    """So many groups of random tokens, sampled by a policy without preferences."""
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(count):
        prompt, answers = draw(rng)
        rewards = rng.permutation([0.0, 1.0] * (GROUP_SIZE // 2))
        rollouts = tuple(
            Rollout(
                rng.integers(0, vocabulary, length).astype(np.int32),
                np.full(length, -math.log(vocabulary), np.float32),
                (VersionSpan(0, 0, length),),
                float(reward),
                {},
                False,
            )
            for length, reward in zip(answers, rewards, strict=True)
        )
        groups.append(
            RolloutGroup(f"t{number}", "train", 0, rng.integers(0, vocabulary, prompt).astype(np.int32), rollouts)
        )
    return groups


def real_tokens(groups: Sequence[RolloutGroup]) -> int:
    """Tokens of prompts and completions, each sequence with its prompt, and no padding."""
    return sum(len(g.prompt) + len(r.tokens) for g in groups for r in g.rollouts)
