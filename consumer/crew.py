"""Training on several ranks: what the leader does, all do, in the same order.

Invariant: a method of `LeadingTrainer` that touches weights tells the followers before it begins, and they do the same
with the same arguments; so their collectives meet. Followers know the model and nothing else: no Redis, no books.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from broker.decoding import decode_group
from broker.schema import RolloutGroup, encode_group
from consumer.figures import StepStats
from consumer.model import Copied
from consumer.ranks import Ranks
from consumer.shards import Assistant, Shards, dismiss_assistants
from consumer.trainer import Trainer
from consumer.transfer import Copies


class LeadingTrainer(Trainer):
    """Rank 0's; alone it is a `Trainer` and nothing else."""

    def train(self, groups: Sequence[RolloutGroup], policy_version: int) -> StepStats:
        """As `Trainer.train`, everywhere."""
        self.ranks.tell("train", policy_version, [encode_group(group) for group in groups])
        return super().train(groups, policy_version)

    def snapshot(self, what: Copied = "published") -> Copies:
        """As `Trainer.snapshot`: gathered from all ranks."""
        self.ranks.tell("snapshot", what)
        return super().snapshot(what)

    def state(self) -> Mapping[str, Tensor] | Shards:
        """As `Trainer.state`: every rank keeps its part."""
        self.ranks.tell("state")
        return super().state()

    def load(self, folder: Path) -> None:
        """As `Trainer.load`: every rank reads its part."""
        self.ranks.tell("load", str(folder))
        super().load(folder)


def dismiss(ranks: Ranks, *, for_good: bool) -> None:
    """Let the followers go: to their end, or to load the model anew."""
    ranks.tell("end" if for_good else "again")
    dismiss_assistants(ranks)


def follow(trainer: Trainer) -> bool:
    """Do as rank 0 does until it lets us go; True if for good."""
    assistant = Assistant(trainer.ranks)
    while True:
        word, *arguments = trainer.ranks.hear()
        if word == "train":
            version, groups = arguments
            trainer.train([decode_group(group) for group in groups], version)
        elif word == "snapshot":
            trainer.snapshot(arguments[0])
        elif word == "state":
            state = trainer.state()
            assert isinstance(state, Shards)
            assistant.offer(state)
        elif word == "load":
            trainer.load(Path(arguments[0]))
        else:
            assistant.close()
            return bool(word == "end")
