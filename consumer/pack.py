"""From groups to micro-batches of tensors.

Invariant: each completion token appears in one micro-batch, once, predicted from the hidden state of the token before
it in its own sequence, whatever the layout. Refuses to know the model and the objective.

A row is a prompt followed by one or more completions of it. With one completion a row the causal order is mask enough
and padding on the right is never looked at. With several (`shared_prompt`) the prompt is computed once: each
completion sees the prompt and itself, at positions that go on from the prompt's.
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

# One attention score costs about this much of what a token costs in the linear layers of a small model; it decides only
# between layouts of equal result.
ATTENTION_COST = 1 / 4000


@dataclass(frozen=True)
class Member:
    """The tokens (L,) of a completion; `first` is the place of the first one in the batch's `Sheet`."""

    tokens: Ints
    first: int


@dataclass(frozen=True)
class Row:
    """A prompt (P,) and the completions that share it in one row."""

    prompt: Ints
    completions: tuple[Member, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(c.tokens) for c in self.completions)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Shapes: R rows, T padded length, N completion tokens.

    `input_ids`, `position_ids` (R, T); `attention_mask` (R, 1, T, T) bool, or None where causal order suffices;
    `predictor` (N,) index into R·T of the position that predicts a token; `targets` (N,); `tokens` (N,) the place of
    each in the batch's `Sheet`, those of a completion together and in order.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    predictor: Tensor
    targets: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return MicroBatch(*(None if v is None else v.to(device) for v in self.__dict__.values()))  # type: ignore[arg-type]

    @property
    def padded_tokens(self) -> int:
        """R·T."""
        return self.input_ids.numel()


def pack(
    groups: Sequence[RolloutGroup],
    starts: Sequence[int],
    tokens_per_micro_batch: int,
    layout: Literal["auto", "padded", "shared_prompt"] = "auto",
    pad: int = 0,
) -> list[MicroBatch]:
    """All completions in micro-batches of at most that many padded tokens (one row at least); `pad` adds padding.

    `starts` are the places in the batch's `Sheet` of the first token of each completion, group by group.
    """
    shared = _rows(groups, starts, tokens_per_micro_batch, shared=True)
    padded = _rows(groups, starts, tokens_per_micro_batch, shared=False)
    if layout == "auto":
        layout = "shared_prompt" if _cost(shared) < 0.9 * _cost(padded) else "padded"
    rows = shared if layout == "shared_prompt" else padded
    return [_tensors(part, pad) for part in _fill(rows, tokens_per_micro_batch)]


def _rows(groups: Sequence[RolloutGroup], starts: Sequence[int], budget: int, *, shared: bool) -> list[Row]:
    rows = []
    first = iter(starts)
    for group in groups:
        part: list[Member] = []
        room = budget - len(group.prompt)
        for rollout in group.rollouts:
            if part and (not shared or len(rollout.tokens) > room):
                rows.append(Row(group.prompt, tuple(part)))
                part, room = [], budget - len(group.prompt)
            part.append(Member(rollout.tokens, next(first)))
            room -= len(rollout.tokens)
        rows.append(Row(group.prompt, tuple(part)))
    return rows


def _cost(rows: Sequence[Row]) -> float:
    """Tokens computed, attention included, in units of a token's linear work."""
    return sum(r.length * (1 + r.length * ATTENTION_COST) for r in rows)


def _fill(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Rows of like length together, longest first, while rows × longest stays within the budget."""
    part: list[Row] = []
    for row in sorted(rows, key=lambda r: (-r.length, r.completions[0].first)):
        if part and (len(part) + 1) * part[0].length > budget:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _tensors(rows: Sequence[Row], pad: int) -> MicroBatch:
    width = rows[0].length + pad
    ids = np.zeros((len(rows), width), np.int64)
    # Positions run on through the padding: a restart would look like a second sequence to transformers.
    positions = np.tile(np.arange(width), (len(rows), 1))
    packed = any(len(row.completions) > 1 for row in rows)
    segments = np.full((len(rows), width), -1, np.int64)  # 0 prompt, 1.. completions, −1 padding
    predictor: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    for r, row in enumerate(rows):
        prompt = len(row.prompt)
        ids[r, :prompt], segments[r, :prompt] = row.prompt, 0
        at = prompt
        for number, c in enumerate(row.completions, 1):
            length = len(c.tokens)
            ids[r, at : at + length] = c.tokens
            positions[r, at : at + length] = prompt + np.arange(length)
            segments[r, at : at + length] = number
            before = np.arange(at - 1, at + length - 1)
            before[0] = prompt - 1  # the first token of every completion is predicted by the end of the prompt
            predictor.append(r * width + before)
            places.append(c.first + np.arange(length))
            at += length
    completions = [c for row in rows for c in row.completions]
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        _mask(torch.from_numpy(segments)) if packed else None,
        torch.from_numpy(np.concatenate(predictor)),
        torch.from_numpy(np.concatenate([c.tokens for c in completions]).astype(np.int64)),
        torch.from_numpy(np.concatenate(places)),
    )


def _mask(segments: Tensor) -> Tensor:
    """(R, T) segments → (R, 1, T, T): a query sees earlier keys of the prompt and its own segment; padding itself."""
    query, key = segments[:, :, None], segments[:, None, :]
    itself = torch.eye(segments.shape[1], dtype=torch.bool)
    causal = torch.ones_like(itself).tril()
    return ((causal & ((key == 0) | (key == query)) & (key >= 0)) | itself)[:, None]
