"""A toy language model and its task, small enough for hundreds of whole training runs on a CPU.

The task is addition of two numbers of two digits in base 3; the answer is written least significant digit first,
without leading zeros, and ended. There is one right answer to each of the 81 prompts, so the expected reward of a
policy is a mean of 81 products and is computed, never estimated. The network is a recurrent one in a transformer's
place; what it is trained from has imitated careless demonstrations and adds badly.

Invariant: everything is a function of its arguments and of the random numbers handed in. Refuses to know objectives,
the learner's steps and staleness.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from broker.schema import Rollout, RolloutGroup, VersionSpan

BASE = 3
END = BASE  # ends an answer
VOCABULARY = BASE + 1
PROMPT = 4  # tokens: two digits of either number, the more significant first
LONGEST = 5  # tokens of an answer, its end included; a right one has at most 4
WIDTH = 48
CARELESS = 0.4  # of the tokens that are imitated, this many are replaced by random ones
IMITATED = 256  # demonstrations an imitation step


class Completions(NamedTuple):
    """`tokens` (S, LONGEST) as sampled, `logprobs` (S, LONGEST) of them, `lengths` (S,): how many of them count."""

    tokens: Tensor
    logprobs: Tensor
    lengths: Tensor


class Problems(NamedTuple):
    """`prompts` (P, PROMPT); `answers` (P, LONGEST), filled up with END; `counted` (P, LONGEST) bool, END once."""

    prompts: Tensor
    answers: Tensor
    counted: Tensor


class Toy(nn.Module):
    """A recurrent language model with as much of a Hugging Face model's face as `PolicyModel` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.config.vocab_size = VOCABULARY
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def base_model(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        """Hidden states (R, T, WIDTH) of rows (R, T) that hold one sequence each, padded on the right."""
        return SimpleNamespace(last_hidden_state=self.body(self.embedding(input_ids))[0])

    def get_input_embeddings(self) -> nn.Embedding:
        """From tokens to what the body takes."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear:
        """From hidden states to logits."""
        return self.head

    def logprobs(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """Of the answers' tokens, (S, LONGEST), after prompts (S, PROMPT)."""
        hidden = self.base_model(torch.cat([prompts, answers], 1)).last_hidden_state[:, PROMPT - 1 : -1]
        return torch.log_softmax(self.head(hidden), -1).gather(2, answers[:, :, None])[:, :, 0]

    @torch.no_grad()
    def sample(self, prompts: Tensor, chance: torch.Generator) -> Completions:
        """A completion of each prompt (S, PROMPT) at temperature 1."""
        tokens, logprobs = torch.full((len(prompts), LONGEST), END), torch.zeros(len(prompts), LONGEST)
        lengths = torch.full((len(prompts),), LONGEST)
        hidden, state = self.body(self.embedding(prompts))
        for t in range(LONGEST):
            spread = torch.log_softmax(self.head(hidden[:, -1]), -1)  # (S, V)
            chosen = torch.multinomial(spread.exp(), 1, generator=chance)
            tokens[:, t], logprobs[:, t] = chosen[:, 0], spread.gather(1, chosen)[:, 0]
            lengths[(chosen[:, 0] == END) & (lengths == LONGEST)] = t + 1
            hidden, state = self.body(self.embedding(chosen), state)
        return Completions(tokens, logprobs, lengths)

    @torch.no_grad()
    def expected_reward(self, problems: Problems) -> float:
        """The probability of the right answer, the mean over all problems: exact."""
        each = self.logprobs(problems.prompts, problems.answers).double()
        return float((each * problems.counted).sum(1).exp().mean())


def addition() -> Problems:
    """Every pair of numbers."""
    pairs = [(a, b) for a in range(BASE**2) for b in range(BASE**2)]
    answers = [[*_digits(a + b), END] for a, b in pairs]
    return Problems(
        torch.tensor([[a // BASE, a % BASE, b // BASE, b % BASE] for a, b in pairs]),
        torch.tensor([answer + [END] * (LONGEST - len(answer)) for answer in answers]),
        torch.tensor([[place < len(answer) for place in range(LONGEST)] for answer in answers]),
    )


def imitator(problems: Problems, seed: int, steps: int) -> Toy:
    """What training starts from: a network that has imitated careless demonstrations for so many steps."""
    torch.manual_seed(seed)
    toy, chance = Toy(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(toy.parameters(), lr=3e-3)
    for _ in range(steps):
        which = torch.randint(len(problems.prompts), (IMITATED,), generator=chance)
        careless = torch.rand(IMITATED, LONGEST, generator=chance) < CARELESS
        anything = torch.randint(VOCABULARY, (IMITATED, LONGEST), generator=chance)
        said = torch.where(careless, anything, problems.answers[which])
        loss = -(toy.logprobs(problems.prompts[which], said) * problems.counted[which]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return toy


Judge = Callable[[Tensor, Tensor, Problems], Tensor]  # tokens (S, LONGEST) and problems (S,) → rewards (S,)


def right(tokens: Tensor, which: Tensor, problems: Problems) -> Tensor:
    """1 for the right answer and nothing behind it, else 0: what can be verified."""
    return ((tokens == problems.answers[which]) | ~problems.counted[which]).all(1).double()


def sampled(
    toy: Toy,
    problems: Problems,
    version: int,
    groups: int,
    size: int,
    chance: torch.Generator,
    judge: Judge = right,
) -> list[RolloutGroup]:
    """`groups` problems drawn at random and `size` completions of each by `toy`, which is policy `version`."""
    drawn = torch.randint(len(problems.prompts), (groups,), generator=chance)
    return answered(toy, problems, version, drawn, size, chance, judge)


def answered(
    toy: Toy, problems: Problems, version: int, drawn: Tensor, size: int, chance: torch.Generator, judge: Judge
) -> list[RolloutGroup]:
    """`size` completions of each of the problems `drawn` (groups,)."""
    which = drawn.repeat_interleave(size)
    found = toy.sample(problems.prompts[which], chance)
    rollouts = [
        Rollout(tokens[:n], logprobs[:n], (VersionSpan(version, 0, n),), reward, truncated=bool(tokens[n - 1] != END))
        for tokens, logprobs, n, reward in zip(
            found.tokens.numpy().astype(np.int32),
            found.logprobs.numpy(),
            found.lengths.tolist(),
            judge(found.tokens, which, problems).tolist(),
            strict=True,
        )
    ]
    prompts = problems.prompts[drawn].numpy().astype(np.int32)
    return [
        RolloutGroup(f"v{version}g{j}", "train", p, prompts[j], tuple(rollouts[j * size : (j + 1) * size]))
        for j, p in enumerate(drawn.tolist())
    ]


def _digits(number: int) -> list[int]:
    """The least significant first."""
    out = [number % BASE]
    while number := number // BASE:
        out.append(number % BASE)
    return out
