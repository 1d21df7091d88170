"""From groups to micro-batches of tensors.

Invariant: each completion token appears in one micro-batch, once, predicted from the hidden state of the token before
it in its own sequence, whatever the layout. Refuses to know the model and the objective.

A block is a prompt followed by one or more completions of it. `packed` and `shared_prompt` put blocks one after another
into a single row (1, T), which `Segments` keep apart; `packed` has one completion a block, `shared_prompt` as many as
the budget allows, so that a prompt is computed once for them: each sees the prompt and itself, at positions that go on
from the prompt's. `padded` has a block of one completion a row, where causal order is mask enough and padding on the
right is never looked at: any model can be given that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from broker.schema import Ints, RolloutGroup
from consumer.bins import fill, spread
from consumer.segments import ALONE, Segments

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

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(c.tokens) for c in self.completions)

    @property
    def cost(self) -> float:
        prompt, lengths = len(self.prompt), [len(c.tokens) for c in self.completions]
        return _cost(prompt) + sum(_cost(length, prompt) for length in lengths)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Shapes: R rows, T tokens a row, N completion tokens.

    `input_ids`, `position_ids` (R, T); `segments` of a packed row, with R = 1, or None where every row is one sequence,
    padded on its right; `predictor` (N,) index into R·T of the position that predicts a token; `targets` (N,); `tokens`
    (N,) the place of each in the batch's `Sheet`, those of a completion together and in order. `cost` is in units of a
    token's linear work, attention included. `real_tokens`: prompts and completions without padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments | None
    predictor: Tensor
    targets: Tensor
    tokens: Tensor
    cost: float
    real_tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return MicroBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            None if self.segments is None else self.segments.to(device),
            self.predictor.to(device),
            self.targets.to(device),
            self.tokens.to(device),
            self.cost,
            self.real_tokens,
        )

    @property
    def padded_tokens(self) -> int:
        """R·T."""
        return self.input_ids.numel()


def pack(
    groups: Sequence[RolloutGroup],
    starts: Sequence[int],
    tokens_per_micro_batch: int,
    layout: Layout = "auto",
    pad: int = 0,
) -> list[MicroBatch]:
    """All completions in micro-batches of at most that many tokens (one block at least), costliest first.

    `starts` are the places in the batch's `Sheet` of the first token of each completion, group by group; `auto` is
    `shared_prompt` where that saves a tenth of the work, `packed` elsewhere; `pad` adds padding to each row.
    """
    budget = tokens_per_micro_batch
    alone = _blocks(groups, starts, budget, shared=False)
    if layout == "padded":
        return [_rows(part, pad) for part in _like_lengths(alone, budget)]
    shared = _blocks(groups, starts, budget, shared=True)
    if layout == "auto":
        saved = sum(b.cost for b in shared) < WORTH_SHARING * sum(b.cost for b in alone)
        layout = "shared_prompt" if saved else "packed"
    blocks = shared if layout == "shared_prompt" else alone
    packed = [_row([blocks[i] for i in part], pad) for part in fill([b.length for b in blocks], budget)]
    return sorted(packed, key=lambda m: (-m.cost, int(m.tokens[0])))


def assign(micro_batches: Sequence[MicroBatch], world: int) -> list[list[int]]:
    """Indices of the micro-batches of each of `world` ranks, of about equal cost, none more than ⌈M/world⌉ of them.

    Ranks that reduce gradients together make as many forward passes as the longest list has entries.
    """
    return spread([m.cost for m in micro_batches], world, -(-len(micro_batches) // world))


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


def _row(blocks: Sequence[Block], pad: int) -> MicroBatch:
    """One row of blocks, each prompt and each completion a segment where prompts are shared, else each sequence."""
    lengths: list[int] = []
    prompts: list[int] = []
    positions: list[npt.NDArray[np.int64]] = []
    for block in blocks:
        prompt, parts = len(block.prompt), [len(c.tokens) for c in block.completions]
        positions += [np.arange(prompt), *(prompt + np.arange(part) for part in parts)]
        if len(parts) == 1:
            lengths, prompts = [*lengths, prompt + parts[0]], [*prompts, ALONE]
        else:
            here = len(lengths)
            lengths, prompts = [*lengths, prompt, *parts], [*prompts, ALONE, *(here for _ in parts)]
    if pad:
        lengths, prompts, positions = [*lengths, pad], [*prompts, ALONE], [*positions, np.arange(pad)]
    ids = np.zeros((1, sum(lengths)), np.int64)
    starts = np.cumsum([0, *(b.length for b in blocks)])
    predictor = [_write(ids[0], block, int(start)) for block, start in zip(blocks, starts, strict=False)]
    segments = Segments.of(lengths, prompts)
    cost = sum(_cost(own, before) for own, before in zip(lengths, segments.before, strict=True))
    return _micro_batch(blocks, ids, np.concatenate(positions)[None], segments, predictor, cost)


def _rows(blocks: Sequence[Block], pad: int) -> MicroBatch:
    """A block of one completion a row, padded on the right to the first one's length and `pad`."""
    width = blocks[0].length + pad
    ids = np.zeros((len(blocks), width), np.int64)
    # Positions run on through the padding: a restart would look like a second sequence to transformers.
    positions = np.tile(np.arange(width), (len(blocks), 1))
    predictor = [r * width + _write(ids[r], block, 0) for r, block in enumerate(blocks)]
    return _micro_batch(blocks, ids, positions, None, predictor, len(blocks) * _cost(width))


def _write(row: npt.NDArray[np.int64], block: Block, start: int) -> npt.NDArray[np.int64]:
    """Puts a block's tokens into a row; the places of what predicts its completion tokens (N,)."""
    prompt, predictor = len(block.prompt), []
    row[start : start + prompt] = block.prompt
    at = start + prompt
    for completion in block.completions:
        length = len(completion.tokens)
        row[at : at + length] = completion.tokens
        before = np.arange(at - 1, at + length - 1)
        before[0] = start + prompt - 1  # the first token of every completion is predicted by the end of the prompt
        predictor.append(before)
        at += length
    return np.concatenate(predictor)


def _micro_batch(
    blocks: Sequence[Block],
    ids: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    segments: Segments | None,
    predictor: Sequence[npt.NDArray[np.int64]],
    cost: float,
) -> MicroBatch:
    completions = [c for block in blocks for c in block.completions]
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        segments,
        torch.from_numpy(np.concatenate(predictor)),
        torch.from_numpy(np.concatenate([c.tokens for c in completions]).astype(np.int64)),
        torch.from_numpy(np.concatenate([c.first + np.arange(len(c.tokens)) for c in completions])),
        cost,
        sum(block.length for block in blocks),
    )
