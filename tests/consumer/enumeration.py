"""A world so small that every expectation is a finite sum: policies over the 15 sequences of at most three tokens.

Invariant: nothing is sampled and nothing approximated. Every batch that could have come is weighed by its probability,
in float64, and its loss is the learner's own: a sheet, `plan`, `token_terms`. Refuses to know what ought to come out.

A policy is a table of logits θ, one row a prefix. No prefix shares a parameter with another, so an identity that holds
here holds, by the chain rule, for whatever network puts out the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consumer.objective.loss import token_terms
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens
from consumer.plan import plan
from consumer.sheet import Sheet

Members = tuple[int, ...]  # the sequences of a batch, by number
Batches = Iterator[tuple[Members, Tensor]]
EXACT = 1e-12  # of what is compared; rounding alone is some 1e-15


class World:
    """All sequences over `letters` letters and an end token, cut off after `longest` tokens.

    Their R tokens stand in one table, sequence by sequence. Per token (R,): `prefix` the number of the state in which
    it was chosen, `token` itself, `sequence` whose it is, `place` how many tokens came before it.
    """

    def __init__(self, letters: int = 2, longest: int = 3) -> None:
        self.sequences = list(_sequences(letters, longest))
        self.longest, self.tokens_known = longest, letters + 1
        prefixes = {y[:t]: None for y in self.sequences for t in range(len(y))}
        number = {prefix: n for n, prefix in enumerate(prefixes)}
        self.states = len(number)
        self.lengths = np.array([len(y) for y in self.sequences], np.int64)
        self.prefix = torch.tensor([number[y[:t]] for y in self.sequences for t in range(len(y))])
        self.token = torch.tensor([token for y in self.sequences for token in y])
        self.sequence = torch.from_numpy(np.repeat(np.arange(len(self)), self.lengths))
        self.place = torch.tensor([t for y in self.sequences for t in range(len(y))])
        self.rows_of = torch.arange(len(self.token)).split(self.lengths.tolist())

    def __len__(self) -> int:
        return len(self.sequences)

    def policy(self, seed: int, scale: float = 1.0) -> Tensor:
        """Logits θ (states, tokens known), float64."""
        rng = np.random.default_rng(seed)
        return torch.from_numpy(scale * rng.normal(size=(self.states, self.tokens_known)))

    def logprobs(self, theta: Tensor) -> Tensor:
        """log π (R,) of every token of the table; differentiable."""
        return torch.log_softmax(theta, -1)[self.prefix, self.token]

    def probabilities(self, logprobs: Tensor) -> Tensor:
        """Of the sequences (S,), from the log-probs (R,) with which each of their tokens is chosen; differentiable."""
        return torch.exp(self.sums(logprobs))

    def sums(self, values: Tensor) -> Tensor:
        """(R,) → (S,): over each sequence."""
        return torch.zeros(len(self), dtype=values.dtype).index_add(0, self.sequence, values)

    def visits(self, logprobs: Tensor) -> Tensor:
        """How often a sequence passes through each state, in expectation (states,)."""
        each = self.probabilities(logprobs)[self.sequence]
        return torch.zeros(self.states, dtype=each.dtype).index_add(0, self.prefix, each)

    def rows(self, members: Members) -> Tensor:
        """Which rows of the table the tokens of these sequences are, in order."""
        return torch.cat([self.rows_of[member] for member in members])


def _sequences(letters: int, longest: int, prefix: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    if len(prefix) == longest or (prefix and prefix[-1] == letters):
        yield prefix
        return
    for token in range(letters + 1):
        yield from _sequences(letters, longest, (*prefix, token))


def groups(probabilities: Tensor, size: int) -> Batches:
    """Every group of `size` independent samples, up to order, and its probability."""
    for members in combinations_with_replacement(range(len(probabilities)), size):
        orders = factorial(size) / prod(factorial(members.count(m)) for m in set(members))
        yield members, orders * probabilities[list(members)].prod()


@dataclass(frozen=True)
class Bench:
    """Where objectives are tried: π = `theta`; `behaviour` log μ (R,) as the learner is told; `rewards` (S,);
    `reference` the logits of π_ref, if there is one."""

    world: World
    theta: Tensor
    behaviour: Tensor
    rewards: Tensor
    reference: Tensor | None = None

    def truth(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """∇ of `value`(log π (R,)) with respect to θ, flat."""
        theta = self.theta.clone().requires_grad_()
        return _gradient(value(self.world.logprobs(theta)), theta)

    def objective(self, logprobs: Tensor) -> Tensor:
        """J = Σ_y π(y) r(y)."""
        return self.world.probabilities(logprobs) @ self.rewards

    @property
    def policy_gradient(self) -> Tensor:
        """∇J, flat."""
        return self.truth(self.objective)

    def found(self, of: ObjectiveSettings, size: int = 1, batches: Batches | None = None) -> Tensor:
        """Where the learner goes in expectation, flat: −∇ of its loss of a batch, which is one group of `size`."""
        return self.expectation(lambda members, logprobs: self.loss(of, members, logprobs), size, batches)

    def expectation(
        self, loss: Callable[[Members, Tensor], Tensor], size: int = 1, batches: Batches | None = None
    ) -> Tensor:
        """−E ∇loss(members, log π (R,)) over `batches`, or else over groups that μ sampled; flat."""
        if batches is None:
            batches = groups(self.world.probabilities(self.behaviour), size)

        def gain(logprobs: Tensor) -> Tensor:
            return -torch.stack([probability * loss(members, logprobs) for members, probability in batches]).sum()

        return self.truth(gain)

    def loss(self, of: ObjectiveSettings, members: Members, logprobs: Tensor) -> Tensor:
        """The learner's loss of one batch, which is one group; π at its start is π itself."""
        world, rows, sheet = self.world, self.world.rows(members), self.sheet(members)
        pi, anchor = logprobs[rows], logprobs[rows].detach()
        reference = None if self.reference is None else world.logprobs(self.reference)[rows]
        fixed = plan(sheet, of, version=0, limit=world.longest, anchor=anchor, reference=reference)
        tokens = Tokens(
            logprobs=pi,
            anchor=anchor,
            behaviour=sheet.behaviour,
            advantages=fixed.advantages,
            staleness=fixed.staleness,
            sequences=sheet.sequences,
            mask=fixed.mask,
            dropped=fixed.dropped,
        )
        return token_terms(tokens, fixed.coefficients, of, divisor=fixed.divisors[0], reference=reference).loss.sum()

    def sheet(self, members: Members) -> Sheet:
        """A batch of one group."""
        rows, lengths = self.world.rows(members), self.world.lengths[list(members)]
        return Sheet(
            behaviour=self.behaviour[rows],
            versions=torch.zeros(len(rows), dtype=torch.int64),
            sequences=torch.from_numpy(np.repeat(np.arange(len(members)), lengths)),
            groups=torch.zeros(len(rows), dtype=torch.int64),
            rewards=self.rewards[list(members)].numpy(),
            lengths=lengths,
            truncated=np.zeros(len(members), np.bool_),
            components=[{}] * len(members),
            sizes=[len(members)],
        )


def bench(off: float, seed: int = 3) -> Bench:
    """A policy, rewards of both signs, and a μ whose logits are `off` standard normal steps away; at 0 it is π."""
    world = World()
    theta = world.policy(seed)
    rewards = torch.from_numpy(np.random.default_rng(seed + 2000).normal(size=len(world)))
    return Bench(world, theta, world.logprobs(theta + world.policy(seed + 1000, off)), rewards)


def objective(**axes: Any) -> ObjectiveSettings:
    """REINFORCE without a baseline, summed over tokens and averaged over sequences, but for the `axes` given.

    A correction has no bound unless one is given.
    """
    plain = {"surrogate": "pg", "baseline": "none", "correction": "none", "aggregation": "constant"}
    full = {**plain, "degenerate": "keep", **axes}
    if full["aggregation"] == "constant":
        full["constant_length"] = 1
    if full["correction"] != "none":
        full.setdefault("correction_bound", "none")
    return ObjectiveSettings.model_validate(full)


def error(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖/‖truth‖."""
    return float((found - truth).norm() / truth.norm())


def cosine(found: Tensor, truth: Tensor) -> float:
    """Of the angle between them."""
    return float(found @ truth / (found.norm() * truth.norm()))


def _gradient(value: Tensor, theta: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, theta)
    return gradient.flatten()
