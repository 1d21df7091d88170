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

from broker.schema import Ints, Rollout, RolloutGroup
from consumer.objective.advantage import leave_one_out

# One attention score costs about this much of what a token costs in the linear layers of a small model; it decides only
# between layouts of equal result.
ATTENTION_COST = 1 / 4000


@dataclass(frozen=True)
class Member:
    """One completion with what the loss needs of it. `at` is its place in the batch: (group, rollout)."""

    rollout: Rollout
    advantage: float
    at: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """A prompt (P,) and the completions that share it in one row."""

    prompt: Ints
    completions: tuple[Member, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(c.rollout.tokens) for c in self.completions)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Shapes: R rows, T padded length, N completion tokens.

    `input_ids`, `position_ids` (R, T); `attention_mask` (R, 1, T, T) bool, or None where causal order suffices;
    `predictor` (N,) index into R·T of the position that predicts a token; `targets`, `behaviour_logprobs`,
    `advantages`, `versions` (N,); `order` (N, 3): group, rollout and place in the completion of each token.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    predictor: Tensor
    targets: Tensor
    behaviour_logprobs: Tensor
    advantages: Tensor
    versions: Tensor
    order: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return MicroBatch(*(None if v is None else v.to(device) for v in self.__dict__.values()))  # type: ignore[arg-type]

    @property
    def padded_tokens(self) -> int:
        """R·T."""
        return self.input_ids.numel()


def pack(
    groups: Sequence[RolloutGroup],
    tokens_per_micro_batch: int,
    layout: Literal["auto", "padded", "shared_prompt"] = "auto",
    pad: int = 0,
) -> list[MicroBatch]:
    """All completions in micro-batches of at most that many padded tokens (one row at least); `pad` adds padding."""
    shared = _rows(groups, tokens_per_micro_batch, shared=True)
    padded = _rows(groups, tokens_per_micro_batch, shared=False)
    if layout == "auto":
        layout = "shared_prompt" if _cost(shared) < 0.9 * _cost(padded) else "padded"
    rows = shared if layout == "shared_prompt" else padded
    return [_tensors(part, pad) for part in _fill(rows, tokens_per_micro_batch)]


def completion_tokens(groups: Sequence[RolloutGroup]) -> int:
    """The fixed denominator: every completion token of the batch."""
    return sum(group.completion_tokens for group in groups)


def _rows(groups: Sequence[RolloutGroup], budget: int, *, shared: bool) -> list[Row]:
    rows = []
    for g, group in enumerate(groups):
        advantages = leave_one_out(group.rewards)
        part: list[Member] = []
        room = budget - len(group.prompt)
        for i, rollout in enumerate(group.rollouts):
            if part and (not shared or len(rollout.tokens) > room):
                rows.append(Row(group.prompt, tuple(part)))
                part, room = [], budget - len(group.prompt)
            part.append(Member(rollout, float(advantages[i]), (g, i)))
            room -= len(rollout.tokens)
        rows.append(Row(group.prompt, tuple(part)))
    return rows


def _cost(rows: Sequence[Row]) -> float:
    """Tokens computed, attention included, in units of a token's linear work."""
    return sum(r.length * (1 + r.length * ATTENTION_COST) for r in rows)


def _fill(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Rows of like length together, longest first, while rows × longest stays within the budget."""
    part: list[Row] = []
    for row in sorted(rows, key=lambda r: (-r.length, r.completions[0].at)):
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
    order: list[npt.NDArray[np.int64]] = []
    for r, row in enumerate(rows):
        prompt = len(row.prompt)
        ids[r, :prompt], segments[r, :prompt] = row.prompt, 0
        at = prompt
        for number, c in enumerate(row.completions, 1):
            length = len(c.rollout.tokens)
            ids[r, at : at + length] = c.rollout.tokens
            positions[r, at : at + length] = prompt + np.arange(length)
            segments[r, at : at + length] = number
            before = np.arange(at - 1, at + length - 1)
            before[0] = prompt - 1  # the first token of every completion is predicted by the end of the prompt
            predictor.append(r * width + before)
            order.append(np.stack([np.full(length, c.at[0]), np.full(length, c.at[1]), np.arange(length)], 1))
            at += length
    completions = [c for row in rows for c in row.completions]
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        _mask(torch.from_numpy(segments)) if packed else None,
        torch.from_numpy(np.concatenate(predictor)),
        torch.from_numpy(np.concatenate([c.rollout.tokens for c in completions]).astype(np.int64)),
        torch.from_numpy(np.concatenate([c.rollout.behaviour_logprobs for c in completions]).astype(np.float32)),
        torch.from_numpy(np.concatenate([np.full(len(c.rollout.tokens), c.advantage) for c in completions])),
        torch.from_numpy(np.concatenate([c.rollout.versions() for c in completions]).astype(np.int64)),
        torch.from_numpy(np.concatenate(order)),
    )


def _mask(segments: Tensor) -> Tensor:
    """(R, T) segments → (R, 1, T, T): a query sees earlier keys of the prompt and its own segment; padding itself."""
    query, key = segments[:, :, None], segments[:, None, :]
    itself = torch.eye(segments.shape[1], dtype=torch.bool)
    causal = torch.ones_like(itself).tril()
    return ((causal & ((key == 0) | (key == query)) & (key >= 0)) | itself)[:, None]
