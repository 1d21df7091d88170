"""What a learner starts from: the newest checkpoint, and the steps since then, which a restart repeats.

Invariant: whenever the learner dies, the newest checkpoint, the journal and the groups still pending lead back to the
committed step, with the same groups in the same order. Refuses to know why a batch was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from broker.errors import Refused
from broker.ledger import Entry
from broker.policy import PolicyStore
from broker.run_folder import RunFolder
from broker.streams import Arrival, RolloutStream
from consumer import checkpoint
from consumer.dispatch import Dispatch
from consumer.durability import Durability
from consumer.evaluation import Evaluator
from consumer.position import Position
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics


@dataclass
class Recovery:
    """The beginning of one learner. `fill` writes a snapshot of the weights into a folder, as a policy version."""

    recipe: LearnerRecipe
    rollouts: RolloutStream
    dispatch: Dispatch
    policy: PolicyStore
    trainer: Trainer
    evaluator: Evaluator
    metrics: LearnerMetrics
    durability: Durability
    fill: Callable[[Path, dict[str, Any]], None]
    at: Position
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    @property
    def _folder(self) -> Path:
        return RunFolder.of(self.recipe.run).checkpoints

    def open(self) -> list[Arrival]:
        """Begin, or take up where the run was; returns what had arrived and has no verdict yet. Raises `Refused`."""
        found = checkpoint.newest(self._folder)
        issued = self.dispatch.ledger.count("issued")
        if found is None and issued:
            raise Refused(
                f"Redis holds the run {self.recipe.run.name} and {self._folder} holds no checkpoint of it",
                "choose another run.name, or bring the checkpoints back",
            )
        if found is not None:
            if found.document["step"] and not issued:
                raise Refused(
                    f"{found.folder} holds the run {self.recipe.run.name} and Redis nothing of it",
                    "bring Redis' data back, or choose another run.name",
                )
            self._load(found)
        if not issued:
            self._begin()
            return []
        pending = self._replay()
        self.dispatch.refill()
        return pending

    def _begin(self) -> None:
        """Checkpoint 0 first: from the first ticket on there is something to repeat from."""
        snapshot = self.trainer.snapshot()
        self.policy.write(0, lambda folder: self.fill(folder, snapshot), replace=True)
        self.durability.first()
        self.dispatch.open(0)
        self.evaluator.start(0, "start")

    def _load(self, found: checkpoint.Checkpoint) -> None:
        """Take the checkpoint's weights and position, and finish the settlement that it owes."""
        document, sequence = found.document, self.dispatch.ledger.count("sequence")
        if sequence not in (document["sequence"] - 1, document["sequence"]):
            raise Refused(
                f"checkpoint {found.folder} (sequence {document['sequence']}) does not belong to "
                f"Redis' ledger (sequence {sequence})",
                "bring back the matching checkpoint, or choose another run.name",
            )
        self.trainer.load_state_dict(found.state())
        self.at.step, self.at.version = document["step"], document["version"]
        self.at.sequence = document["sequence"]
        self.durability.resumed(self.at.step)
        if sequence == document["sequence"] - 1:
            entries = [Entry.decode(entry) for entry in document["entries"]]
            ids = {t: e.encode() for t, e in document["entry_ids"].items()}
            self.dispatch.make_final(entries, self.at.sequence, ids)

    def _replay(self) -> list[Arrival]:
        """Repeat the journalled steps, publishing and issuing nothing; returns what else is pending."""
        self.evaluator.resume()
        pending = {arrival.ticket_id: arrival for arrival in self.rollouts.pending()}
        self.dispatch.resume(self.policy.newest() or 0)
        for entry in self.dispatch.journal:
            self.metrics.waiting("replay", f"step {entry.step}")
            lost = [t for t in entry.tickets if t not in pending or pending[t].group is None]
            if lost:
                raise Refused(f"step {entry.step} cannot be repeated: its group {lost[0]} is gone from Redis")
            arrivals = [pending.pop(t) for t in entry.tickets]
            self.dispatch.entry_ids.update({a.ticket_id: a.entry_id for a in arrivals})
            if arrivals:  # none: a publication alone, at the end of a run
                self.trainer.train([a.group for a in arrivals if a.group is not None], self.at.version)
            self.at.step, self.at.version = entry.step, entry.version
            self.at.steps_at_version = 0 if entry.published else self.at.steps_at_version + 1
            self.metrics.progress()
            self.log.info("repeated a step", step=entry.step, version=entry.version)
        return list(pending.values())
