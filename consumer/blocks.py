"""How a batch is cut for forward passes, before any tensor is made: blocks, and the parcels that hold some of them.

Invariant: every completion is in one parcel, once, whole, with its prompt. Refuses to know tensors, devices, the model.

A block is a prompt followed by one or more completions of it. A parcel lays its blocks one after another into a single
row, or, `apart`, a block of one completion into each of several rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from broker.schema import Ints, RolloutGroup
from consumer.bins import fill
from consumer.segments import ALONE

Layout = Literal["auto", "packed", "shared_prompt", "padded"]
# One attention score costs about this much of what a token costs in the linear layers of a small model; it decides only
# between layouts of equal result, and between ranks.
ATTENTION_COST = 1 / 4000
# What of the cost sharing prompts has to leave, at most, to be worth its less regular attention.
WORTH_SHARING = 0.9


@dataclass(frozen=True)
class Member:
    """The tokens (L,) of a completion; `first` is the place of the first one in the batch's `Sheet`."""

    tokens: Ints
    first: int


@dataclass(frozen=True)
class Block:
    """A prompt (P,) and the completions that share it."""

    prompt: Ints
    completions: tuple[Member, ...]

    @cached_property
    def length(self) -> int:
        """Tokens, the prompt once."""
        return len(self.prompt) + sum(len(c.tokens) for c in self.completions)

    @property
    def cost(self) -> float:
        """In units of a token's linear work."""
        prompt = len(self.prompt)
        return _cost(prompt) + sum(_cost(len(c.tokens), prompt) for c in self.completions)


@dataclass(frozen=True)
class Parcel:
    """What one forward pass will compute. `pad` tokens of padding end each row."""

    blocks: tuple[Block, ...]
    apart: bool
    pad: int = 0

    @cached_property
    def segments(self) -> tuple[list[int], list[int]]:
        """Of a single row: lengths, and the segment that each goes on from. A prompt with one completion is one."""
        lengths: list[int] = []
        prompts: list[int] = []
        for block in self.blocks:
            here, parts = len(lengths), [len(c.tokens) for c in block.completions]
            if len(parts) == 1:
                lengths.append(block.length)
                prompts.append(ALONE)
            else:
                lengths += [len(block.prompt), *parts]
                prompts += [ALONE, *(here for _ in parts)]
        return ([*lengths, self.pad], [*prompts, ALONE]) if self.pad else (lengths, prompts)

    @cached_property
    def cost(self) -> float:
        """In units of a token's linear work, attention included."""
        if self.apart:
            return len(self.blocks) * _cost(self.width)
        lengths, prompts = self.segments
        return sum(_cost(own, 0 if p == ALONE else lengths[p]) for own, p in zip(lengths, prompts, strict=True))

    @property
    def first(self) -> int:
        """Place in the sheet of its first token."""
        return self.blocks[0].completions[0].first

    @property
    def rows(self) -> int:
        """R."""
        return len(self.blocks) if self.apart else 1

    @property
    def width(self) -> int:
        """T."""
        return self.pad + (self.blocks[0].length if self.apart else self.real_tokens)

    @property
    def real_tokens(self) -> int:
        """Prompts and completions without padding."""
        return sum(block.length for block in self.blocks)

    @property
    def padded_tokens(self) -> int:
        """R·T."""
        return self.rows * self.width


def parcels_of(
    groups: Sequence[RolloutGroup],
    starts: Sequence[int],
    tokens_per_micro_batch: int,
    layout: Layout = "auto",
    pad: int = 0,
) -> list[Parcel]:
    """All completions in parcels of at most that many tokens (one block at least), costliest first.

    `starts` are the places in the batch's `Sheet` of the first token of each completion, group by group; `auto` is
    `shared_prompt` where that saves a tenth of the work, `packed` elsewhere; `pad` adds padding to each row.
    """
    budget = tokens_per_micro_batch
    alone = _blocks(groups, starts, budget, shared=False)
    if layout == "padded":
        return [Parcel(tuple(part), True, pad) for part in _like_lengths(alone, budget)]
    shared = _blocks(groups, starts, budget, shared=True) if layout != "packed" else alone
    if layout == "auto":
        saved = sum(b.cost for b in shared) < WORTH_SHARING * sum(b.cost for b in alone)
        layout = "shared_prompt" if saved else "packed"
    blocks = shared if layout == "shared_prompt" else alone
    found = (Parcel(tuple(blocks[i] for i in part), False, pad) for part in fill([b.length for b in blocks], budget))
    return sorted(found, key=lambda parcel: (-parcel.cost, parcel.first))


def _blocks(groups: Sequence[RolloutGroup], starts: Sequence[int], budget: int, *, shared: bool) -> list[Block]:
    blocks = []
    first = iter(starts)
    for group in groups:
        part: list[Member] = []
        room = budget - len(group.prompt)
        for rollout in group.rollouts:
            if part and (not shared or len(rollout.tokens) > room):
                blocks.append(Block(group.prompt, tuple(part)))
                part, room = [], budget - len(group.prompt)
            part.append(Member(rollout.tokens, next(first)))
            room -= len(rollout.tokens)
        blocks.append(Block(group.prompt, tuple(part)))
    return blocks


def _cost(queries: int, before: int = 0) -> float:
    """Of a causal segment that sees so many tokens before its own."""
    return queries * (1 + (before + queries / 2) * ATTENTION_COST)


def _like_lengths(blocks: Sequence[Block], budget: int) -> Iterator[list[Block]]:
    """Blocks of like length together, longest first, while rows × longest stays within the budget."""
    part: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.length, b.completions[0].first)):
        if part and (len(part) + 1) * part[0].length > budget:
            yield part
            part = []
        part.append(block)
    if part:
        yield part
