"""A batch as one table of its completion tokens, in the order of its groups, whatever the layout they are computed in.

Invariant: row n of the table is the same token for whoever speaks of it: packing, loss, figures, every rank. Refuses to
know the objective and the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from broker.schema import RolloutGroup


@dataclass(frozen=True)
class Sheet:
    """N tokens in S sequences in G groups.

    Per token (N,): `behaviour` log μ float32, `versions` and `sequences` int64, `groups` int64. Per sequence (S,):
    `rewards` float64, `lengths` int64, `truncated` bool, `components`. Per group: `sizes`, its number of sequences.
    """

    behaviour: Tensor
    versions: Tensor
    sequences: Tensor
    groups: Tensor
    rewards: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    components: Sequence[Mapping[str, float]]
    sizes: Sequence[int]

    @classmethod
    def of(cls, groups: Sequence[RolloutGroup]) -> Sheet:
        """The table of a batch."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        sizes = [len(group.rollouts) for group in groups]
        lengths = np.array([len(r.tokens) for r in rollouts], np.int64)
        sequences = np.repeat(np.arange(len(rollouts)), lengths)
        group_of = np.repeat(np.arange(len(groups)), sizes)
        return cls(
            torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *(r.behaviour_logprobs for r in rollouts)])),
            torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(r.versions() for r in rollouts)])),
            torch.from_numpy(sequences),
            torch.from_numpy(group_of[sequences]),
            np.array([r.reward for r in rollouts], np.float64),
            lengths,
            np.array([r.truncated for r in rollouts], np.bool_),
            [r.components for r in rollouts],
            sizes,
        )

    def __len__(self) -> int:
        return len(self.behaviour)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Row of each sequence's first token, (S,)."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts
