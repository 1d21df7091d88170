"""Ragged batches with every awkward case in them, and what the learner's objective makes of one without any model.

Invariant: all numbers are float64 but the behaviour log-probs, which travel as float32. Refuses to know what is right:
that is the oracle's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from broker.schema import Rollout, RolloutGroup
from consumer.objective.loss import token_terms
from consumer.objective.settings import ObjectiveSettings
from consumer.objective.tokens import Tokens
from consumer.plan import Plan, plan
from consumer.sheet import Sheet
from tests.consumer.groups import rollout
from tests.consumer.oracle import Answer, Logprobs, answers_of

VERSION, LIMIT = 5, 8
# Lengths and rewards, group by group: empty answers, single tokens, a group of one, a group of equals, the limit.
SHAPES: list[list[tuple[int, float]]] = [
    [(3, 1.0), (0, 0.0), (6, 0.0), (1, 0.25)],
    [(5, 1.0)],
    [(2, 0.5), (4, 0.5), (8, 0.5)],
    [(8, 0.0), (7, 1.0), (1, 0.0), (5, 0.5), (6, 1.0)],
    [(0, 1.0), (1, 0.0)],
    [(4, -0.5), (7, 0.75), (2, 0.125)],
]
CUT_OFF = {(0, 2), (3, 0), (3, 2), (1, 0)}  # (group, rollout) that were truncated


@dataclass(frozen=True)
class Ragged:
    """Groups, and π, π at the start of the batch, π_ref and entropies as nested lists."""

    groups: list[RolloutGroup]
    logprobs: Logprobs
    anchor: Logprobs
    reference: Logprobs
    entropy: Logprobs

    def answers(self) -> list[Answer]:
        """As the oracle takes them."""
        return answers_of(self.groups, self.logprobs, self.anchor, self.reference, self.entropy, VERSION)

    def column(self, name: str) -> Tensor:
        """One of them flat (N,), float64."""
        return torch.tensor([x for g in getattr(self, name) for r in g for x in r], dtype=torch.float64)

    def shuffled(self, seed: int) -> tuple[Ragged, list[int]]:
        """The same batch with groups and rollouts in another order, and where each token (N,) was before."""
        order, place = random.Random(seed), 0
        places: list[list[list[int]]] = []
        for group in self.groups:
            places.append([])
            for r in group.rollouts:
                places[-1].append(list(range(place, place + len(r.tokens))))
                place += len(r.tokens)
        index = order.sample(range(len(self.groups)), len(self.groups))
        inner = [order.sample(range(len(g.rollouts)), len(g.rollouts)) for g in self.groups]

        def sorted_(nested: list[list[list[float]]]) -> Logprobs:
            return [[nested[g][i] for i in inner[g]] for g in index]

        groups = [replace(self.groups[g], rollouts=tuple(self.groups[g].rollouts[i] for i in inner[g])) for g in index]
        columns = [sorted_(getattr(self, name)) for name in ("logprobs", "anchor", "reference", "entropy")]
        return Ragged(groups, *columns), [n for g in index for i in inner[g] for n in places[g][i]]


def ragged(seed: int) -> Ragged:
    """A batch with ratios on both sides of every bound, near 1 and far from it, A of both signs and 0."""
    rng = np.random.default_rng(seed)
    groups, nested = [], [list[list[list[float]]]() for _ in range(4)]
    for g, shape in enumerate(SHAPES):
        made, columns = [], [list[list[float]]() for _ in range(4)]
        for i, (length, reward) in enumerate(shape):
            anchor = rng.uniform(-3.0, -0.05, length)
            # One answer in three hardly moves, one drifts as a whole: means and products come near their bounds, too.
            near, drift = rng.choice([0.003, 0.3, 1.0]), rng.choice([-0.5, 0.0, 0.5])
            behaviour = anchor + near * (rng.normal(0, 0.8, length) + drift)
            behaviour += np.where(rng.random(length) < 0.06, 5.5, 0.0)  # π has all but given up some tokens
            logprobs = anchor + near * (rng.normal(0, 0.5, length) + rng.choice([-0.5, 0.0, 0.5]))
            others = anchor + rng.normal(0, 0.5, length), rng.uniform(0, 3, length)
            for column, values in zip(columns, (logprobs, anchor, *others), strict=True):
                column.append(values.tolist())
            made.append(_rollout(rng, behaviour.tolist(), reward, (g, i) in CUT_OFF))
        groups.append(RolloutGroup(f"t{g}", "train", g, np.array([1], np.int32), tuple(made)))
        for whole, column in zip(nested, columns, strict=True):
            whole.append(column)
    return Ragged(groups, *nested)


def _rollout(rng: np.random.Generator, behaviour: list[float], reward: float, truncated: bool) -> Rollout:
    length = len(behaviour)
    cut = int(rng.integers(0, length + 1))
    spans = [(int(rng.integers(2, 5)), 0, cut), (5, cut, length)]
    form = {"right": reward, "brief": float(rng.integers(0, 3))}
    return rollout([1] * length, reward, logprobs=behaviour, spans=spans, truncated=truncated, **form)


@dataclass(frozen=True)
class Computed:
    """What the learner's functions make of a batch, each (N,) in the order of its tokens, and their plan."""

    loss: Tensor
    gradient: Tensor
    by_entropy: Tensor
    clipped: Tensor
    truncated: Tensor
    masked: Tensor
    plan: Plan


def computed(batch: Ragged, of: ObjectiveSettings, minibatches: int = 1, split: int | None = None) -> Computed:
    """`plan`, then `token_terms` of each minibatch at the same π; `split` is a seed for cutting them up further."""
    sheet = Sheet.of(batch.groups)
    logprobs, entropy = batch.column("logprobs").requires_grad_(), batch.column("entropy").requires_grad_()
    anchor, reference = batch.column("anchor"), batch.column("reference") if of.needs_reference else None
    fixed = plan(sheet, of, version=VERSION, limit=LIMIT, minibatches=minibatches, anchor=anchor, reference=reference)
    columns = {n: torch.zeros(len(sheet), dtype=torch.float64) for n in ("loss", "clipped", "truncated", "masked")}
    for number, rows in _cut(sheet, fixed, split):
        tokens = Tokens(
            logprobs[rows],
            anchor[rows],
            sheet.behaviour.double()[rows],
            fixed.advantages[rows],
            fixed.staleness[rows],
            sheet.sequences[rows],
            fixed.mask[rows],
            fixed.dropped[rows],
        )
        terms = token_terms(
            tokens,
            fixed.coefficients[rows],
            of,
            progress=number / minibatches,
            divisor=fixed.divisors[number],
            reference=None if reference is None else reference[rows],
            entropy=entropy[rows] if of.entropy_bonus else None,
        )
        terms.loss.sum().backward()
        for name, column in columns.items():
            column[rows] = getattr(terms, name).detach().double()
    zeros = torch.zeros(len(sheet), dtype=torch.float64)
    gradient, by_entropy = (zeros if x.grad is None else x.grad for x in (logprobs, entropy))
    clipped, truncated, masked = (columns[name].bool() for name in ("clipped", "truncated", "masked"))
    return Computed(columns["loss"], gradient, by_entropy, clipped, truncated, masked, fixed)


def _cut(sheet: Sheet, fixed: Plan, split: int | None) -> list[tuple[int, Tensor]]:
    """Minibatch number and rows of each micro-batch: whole sequences, in any order where there is a seed."""
    out = []
    rows_of = [(sheet.sequences == s).nonzero()[:, 0] for s in range(len(sheet.lengths))]
    for number in range(len(fixed.divisors)):
        rows = [r for r in rows_of if len(r) and fixed.part[r[0]] == number]
        parts = [rows]
        if split is not None:
            order = random.Random(split)
            order.shuffle(rows)
            at = sorted(order.sample(range(len(rows)), min(2, len(rows))))
            parts = [rows[a:b] for a, b in zip([0, *at], [*at, len(rows)], strict=True)]
        out += [(number, torch.cat(list(chain(part)))) for part in parts if part]
    return out
