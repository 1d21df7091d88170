"""What a learner starts from: a checkpoint, and the steps since then, which a restart repeats.

Invariant: whenever the learner dies, the newest checkpoint, the journal and the groups still pending lead back to the
committed step, with the same groups in the same order. Where Redis has lost something, the books are made anew from the
checkpoint, under the old ticket ids and seeds, and no policy version is ever used twice. Refuses to know why a batch
was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from broker.cut import Cut
from broker.errors import Malformed, Refused
from broker.ledger import Entry
from broker.points import reached
from broker.policy import PolicyStore
from broker.run_folder import RunFolder
from broker.streams import Arrival, RolloutStream
from consumer import checkpoint
from consumer.checkpoint import Checkpoint
from consumer.dispatch import Dispatch
from consumer.durability import Durability
from consumer.evaluation import Evaluator
from consumer.guard import CollapseGuard
from consumer.position import Position
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics

ROLLED_BACK = "rolled_back_to"  # in the books: the step of the last rollback, which is done once


class Gone(Exception):
    """A journalled step cannot be repeated: a group of it is not in Redis any more."""


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
    fill: Callable[[Path, Mapping[str, Any]], None]
    at: Position
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    @property
    def _folder(self) -> Path:
        return RunFolder.of(self.recipe.run).checkpoints

    def open(self) -> list[Arrival]:
        """Begin, or take up where the run was; returns what had arrived and has no verdict yet. Raises `Refused`."""
        (found, back), issued = self._chosen(), self.dispatch.ledger.count("issued")
        if found is None and issued:
            raise Refused(
                f"Redis holds the run {self.recipe.run.name} and {self._folder} holds no checkpoint of it",
                "choose another run.name, or bring the checkpoints back",
            )
        if found is None or (found.step == 0 and not issued and self.policy.used() <= 0):
            self._begin()
            return []
        self._load(found)
        if back:
            return self._go_back(found)
        here, there = self.dispatch.ledger.fence.mark.commits, found.cut.mark.commits
        if here < there or not issued:
            return self._rebuild(found, f"Redis holds {here} of at least {there} commits")
        self._finish(found)
        reached("recovery.loaded")
        try:
            pending = self._replay()
        except Gone as gone:
            self._load(found)
            return self._rebuild(found, str(gone))
        self._mend()
        self.dispatch.refill()
        return pending

    def _chosen(self) -> tuple[Checkpoint | None, bool]:
        """The checkpoint to start from, and whether that is a rollback: done once, not at every restart after it."""
        step = self.recipe.learner.resume
        if step == "auto":
            return checkpoint.newest(self._folder), False
        if self.dispatch.ledger.books().get(ROLLED_BACK) == str(step) or self._descends_from(step):
            return checkpoint.newest(self._folder), False
        return checkpoint.named(self._folder, step), True

    def _descends_from(self, step: int) -> bool:
        """The newest checkpoint was written after a rollback to `step`: for where Redis has forgotten it."""
        try:
            newest = checkpoint.newest(self._folder)
        except Refused:  # damaged: which may be why an older one is named
            return False
        return newest is not None and newest.cut.pages["train"].counters.get(ROLLED_BACK) == str(step)

    def _begin(self) -> None:
        """Checkpoint 0 first: from the first ticket on there is something to repeat from."""
        snapshot = self.trainer.snapshot()
        self.policy.write(0, lambda folder: self.fill(folder, snapshot), replace=True)
        self.durability.first()
        reached("recovery.first-checkpoint")
        self.dispatch.open(0)
        reached("recovery.opened")

    def _load(self, found: Checkpoint) -> None:
        """Take the checkpoint's weights and position. Raises `Refused` for those of another model."""
        self._same_adapters(found)
        self.trainer.load(found.verified())
        self.at.step, self.at.version, self.at.steps_at_version = found.step, found.document["version"], 0
        self.at.sequence = found.document["sequence"]
        self.durability.resumed(found)
        self.dispatch.issuer.remember(found.history(self.recipe.learner.curriculum_longest_rest))
        self.trainer.guard = CollapseGuard(self.recipe.learner)

    def _same_adapters(self, found: Checkpoint) -> None:
        """Their shapes are compared where they are loaded: these are what the same shapes would hide."""
        theirs, ours = (given or {} for given in (found.document.get("adapts"), self.trainer.model.adapts))
        for name, key in (("base", "run.model"), ("scale", "learner.lora_alpha")):
            if theirs and ours and theirs[name] != ours[name]:
                raise Refused(
                    f"checkpoint {found.folder} holds adapters that were trained with another {key}",
                    f"bring back the {key} it was trained with, or choose another run.name",
                )

    def _finish(self, found: Checkpoint) -> None:
        """Finish the settlement that the checkpoint owes. Raises `Refused` if it is not one of these books."""
        owes, sequence = found.document["sequence"], self.dispatch.ledger.count("sequence")
        if sequence not in (owes - 1, owes):
            raise Refused(
                f"checkpoint {found.folder} (sequence {owes}) does not belong to Redis' ledger (sequence {sequence})",
                f"--learner.resume {found.step} goes back to it for good, or bring back the matching one",
            )
        if sequence == owes - 1:
            ids = {t: e.encode() for t, e in found.document["entry_ids"].items()}
            self.dispatch.make_final(
                [Entry.decode(entry) for entry in found.document["entries"]], owes, ids, found.cut.observed
            )

    # -- the steps since the checkpoint ------------------------------------------------------------------------------

    def _replay(self) -> list[Arrival]:
        """Repeat the journalled steps, publishing and issuing nothing; returns what else is pending. Raises `Gone`."""
        self.evaluator.resume()
        pending = {arrival.ticket_id: arrival for arrival in self.rollouts.pending()}
        self.dispatch.resume(self.policy.newest() or 0)
        for entry in self.dispatch.journal:
            self.metrics.waiting("replay", f"step {entry.step}")
            lost = [t for t in entry.tickets if t not in pending or pending[t].group is None]
            if lost:
                raise Gone(f"step {entry.step} cannot be repeated, the group {lost[0]} of it is gone from Redis")
            arrivals = [pending.pop(t) for t in entry.tickets]
            self.dispatch.entry_ids.update({a.ticket_id: a.entry_id for a in arrivals})
            if arrivals:  # none: a publication alone, at the end of a run
                self.trainer.train([a.group for a in arrivals if a.group is not None], self.at.version)
            self.at.step, self.at.version = entry.step, entry.version
            self.at.steps_at_version = 0 if entry.published else self.at.steps_at_version + 1
            reached("recovery.repeated")
            self.metrics.progress()
            self.log.info("repeated a step", step=entry.step, version=entry.version)
        return list(pending.values())

    def _mend(self) -> None:
        """See that the version the pointer names can be had, and that the next number is one nobody has seen."""
        newest = self.policy.newest() or 0
        try:
            self.policy.open(newest)
            whole = True
        except (FileNotFoundError, Malformed):
            whole = False
        if self._repeatable:
            if not whole and not self.at.steps_at_version:
                self._upload(newest)
        elif not whole or self.policy.used() > newest:
            self.at.version, self.at.steps_at_version = max(newest, self.policy.used()) + 1, 0
            self._upload(self.at.version)
            self.dispatch.commit(self.at.step, self.at.version, [], publish=True)
            self.log.warning("published under a new number", version=self.at.version, instead_of=newest)

    # -- the books made anew -----------------------------------------------------------------------------------------

    def _go_back(self, found: Checkpoint) -> list[Arrival]:
        """The rollback somebody asked for by naming an older checkpoint."""
        aside = checkpoint.abandon(self._folder, found.step)
        self.log.warning("newer checkpoints are set aside", now=[folder.name for folder in aside])
        return self._rebuild(found, "a rollback was asked for", back=True)

    def _rebuild(self, found: Checkpoint, why: str, back: bool = False) -> list[Arrival]:
        """Books, streams and pointer as the checkpoint knows them, in one MULTI; what came after is done anew."""
        cut = found.settled
        if back or not self._repeatable:
            self.at.version = self._unused(self.at.version)
        renumbered = self.at.version != found.document["version"]
        if renumbered:
            cut = cut.reopened(self.at.version)
        self._upload(self.at.version)
        reached("recovery.rebuilding")
        with self.dispatch.ledger.transaction(known=cut.mark) as pipe:
            self._rewrite(pipe, cut)
            if renumbered:  # else the next restart would count on from the old number
                self.dispatch.ledger.journal(pipe, Entry(self.at.step, self.at.version, True, ()))
            if back:
                self.dispatch.ledger.mark(pipe, ROLLED_BACK, str(found.step))
        reached("recovery.rebuilt")
        self.dispatch.resume(self.at.version)
        self.evaluator.resume()
        self.dispatch.refill()
        self.metrics.rebuilds.inc()
        self.log.warning("taken up from a checkpoint", step=found.step, version=self.at.version, because=why)
        return []

    def _rewrite(self, pipe: Any, cut: Cut) -> None:
        train, evaluations = cut.pages["train"], cut.pages["eval"]
        self.dispatch.ledger.rewrite(pipe, train, self.dispatch.tickets(train))
        self.dispatch.ledger.mark(pipe, "policy_version", str(self.at.version))
        tickets = [self.evaluator.ticket(t, o.min_policy_version) for t, o in evaluations.unsettled.items()]
        self.evaluator.ledger.rewrite(pipe, evaluations, tickets)
        self.policy.point(pipe, self.at.version)

    @property
    def _repeatable(self) -> bool:
        """Every number would come back with the very same weights: so it may come back."""
        strict = self.recipe.learner.order == "strict" and self.recipe.run.deterministic
        return strict and self.trainer.model.device.type == "cpu" and self.trainer.ranks.world == 1

    def _unused(self, version: int) -> int:
        """`version` if nobody has seen a higher number, else the first that nobody has seen."""
        highest = max([version, self.policy.used(), self.policy.newest() or 0, *self.durability.named])
        return version if highest == version else highest + 1

    def _upload(self, version: int) -> None:
        snapshot = self.trainer.snapshot()
        self.policy.write(version, lambda folder: self.fill(folder, snapshot), replace=True)
