"""Which tokens of a packed row see which: consecutive segments, each causal in itself, some going on from a prompt.

Invariant: a token sees the whole segment that its own goes on from, its own up to itself, and nothing else. Refuses to
know what is in the tokens, and how attention is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consumer.transfer import sent

ALONE = -1


@dataclass(frozen=True)
class Segments:
    """S segments that tile a row (1, T) in order; build with `Segments.of`.

    `lengths` (S,); `prompts` (S,): the segment that each one goes on from, which itself goes on from none, or `ALONE`.
    For kernels of variable length, int32: `query_ends` (S+1,) and `key_ends` (S+1,), cumulative numbers of queries and
    of keys; `keys` (K,) the place in the row of every key, segment by segment, or None where that is the row as it is.
    """

    lengths: tuple[int, ...]
    prompts: tuple[int, ...]
    query_ends: Tensor
    key_ends: Tensor
    keys: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int], prompts: Sequence[int]) -> Segments:
        """From lengths and prompts, the rest derived."""
        sizes, of = np.asarray(lengths, np.int64), np.asarray(prompts, np.int64)
        starts = np.cumsum(sizes) - sizes
        before = np.where(of == ALONE, 0, sizes[of])
        spans = np.stack([starts[of], starts], 1).ravel(), np.stack([before, sizes], 1).ravel()  # prompt's, own
        return cls(
            tuple(lengths),
            tuple(prompts),
            _ends(sizes),
            _ends(before + sizes),
            torch.from_numpy(ranges(*spans)) if bool((of != ALONE).any()) else None,
        )

    def to(self, device: torch.device) -> Segments:
        """The same with its tensors on `device`."""
        return replace(
            self,
            query_ends=sent(self.query_ends, device),
            key_ends=sent(self.key_ends, device),
            keys=None if self.keys is None else sent(self.keys, device),
        )

    @property
    def before(self) -> tuple[int, ...]:
        """Keys (S,) that a segment sees before its own."""
        return tuple(0 if prompt == ALONE else self.lengths[prompt] for prompt in self.prompts)

    @property
    def longest(self) -> tuple[int, int]:
        """Most queries, and most keys, of a segment."""
        return max(self.lengths), max(own + before for own, before in zip(self.lengths, self.before, strict=True))


def ranges(starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start, start + 1, … of each of them (K,), so many of each (K,), one after another."""
    ends = np.cumsum(sizes)
    found: npt.NDArray[np.int64] = np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
    return found


def _ends(sizes: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
