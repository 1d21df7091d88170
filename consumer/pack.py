"""From groups to micro-batches of tensors.

Invariant: each completion token appears in one micro-batch, once, predicted from the hidden state of the token before
it in its own sequence, whatever the layout. Refuses to know the model and the objective.

`packed` and `shared_prompt` put blocks one after another into a single row (1, T), which `Segments` keep apart;
`packed` has one completion a block, `shared_prompt` as many as the budget allows, so that a prompt is computed once for
them: each sees the prompt and itself, at positions that go on from the prompt's. `padded` has a block of one completion
a row, where causal order is mask enough and padding on the right is never looked at: any model can be given that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from broker.schema import Ints, RolloutGroup
from consumer.bins import spread
from consumer.blocks import Layout, Parcel, parcels_of
from consumer.segments import Segments, ranges
from consumer.transfer import sent

__all__ = ["Layout", "MicroBatch", "assign", "micro_batch", "pack"]


class Priced(Protocol):
    """What takes time."""

    @property
    def cost(self) -> float:
        """In units of a token's linear work."""


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
            sent(self.input_ids, device),
            sent(self.position_ids, device),
            None if self.segments is None else self.segments.to(device),
            sent(self.predictor, device),
            sent(self.targets, device),
            sent(self.tokens, device),
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
    """What `parcels_of` makes of these arguments, as micro-batches."""
    return [micro_batch(parcel) for parcel in parcels_of(groups, starts, tokens_per_micro_batch, layout, pad)]


def assign(micro_batches: Sequence[Priced], world: int) -> list[list[int]]:
    """Indices of the micro-batches of each of `world` ranks, of about equal cost, none more than ⌈M/world⌉ of them.

    Ranks that reduce gradients together make as many forward passes as the longest list has entries.
    """
    return spread([m.cost for m in micro_batches], world, -(-len(micro_batches) // world))


def micro_batch(parcel: Parcel) -> MicroBatch:
    """The tensors of a parcel, made without a loop over tokens."""
    pieces = _pieces(parcel)
    place, position, row, last = (np.array(column) for column in zip(*(p[1:] for p in pieces), strict=True))
    size = np.array([len(piece.tokens) for piece in pieces])
    ids, positions = (np.zeros(parcel.padded_tokens, np.int64) for _ in range(2))
    where = ranges(place, size)
    ids[where] = np.concatenate([piece.tokens for piece in pieces])
    positions[where] = ranges(position, size)
    if parcel.apart:  # they run on through the padding: a restart would look like a second sequence to transformers
        positions = np.tile(np.arange(parcel.width), parcel.rows)
    elif parcel.pad:
        positions[-parcel.pad :] = np.arange(parcel.pad)
    answers = (row >= 0) & (size > 0)
    place, size, row, last = place[answers], size[answers], row[answers], last[answers]
    predictor = ranges(place - 1, size)
    predictor[np.cumsum(size) - size] = last  # the first token of every completion: by the end of the prompt
    shape = (parcel.rows, parcel.width)
    return MicroBatch(
        torch.from_numpy(ids.reshape(shape)),
        torch.from_numpy(positions.reshape(shape)),
        None if parcel.apart else Segments.of(*parcel.segments),
        torch.from_numpy(predictor),
        torch.from_numpy(ids[ranges(place, size)]),
        torch.from_numpy(ranges(row, size)),
        parcel.cost,
        parcel.real_tokens,
    )


class _Piece(NamedTuple):
    """A prompt or a completion: its first token's place in R·T, position, and row of the sheet (−1 for a prompt's).

    `last` is the place of the prompt's last token.
    """

    tokens: Ints
    place: int
    position: int
    row: int
    last: int


def _pieces(parcel: Parcel) -> list[_Piece]:
    pieces, place = [], 0
    for number, block in enumerate(parcel.blocks):
        place, prompt = number * parcel.width if parcel.apart else place, len(block.prompt)
        last = place + prompt - 1
        pieces.append(_Piece(block.prompt, place, 0, -1, last))
        place += prompt
        for member in block.completions:
            pieces.append(_Piece(member.tokens, place, prompt, member.first, last))
            place += len(member.tokens)
    return pieces
