"""The Redis key space of a run, written down in this one place.

Every key begins with `headrace:<run>:`; several runs share one Redis without meeting.
"""

from __future__ import annotations

from dataclasses import dataclass

GENERATORS = "generators"  # consumer group on the ticket streams
LEARNER = "learner"  # consumer group on the rollout streams


@dataclass(frozen=True)
class Keys:
    """Names of everything a run keeps in Redis."""

    run: str

    def _key(self, *parts: str) -> str:
        return ":".join(("headrace", self.run, *parts))

    @property
    def everything(self) -> str:
        """Pattern of all keys of the run."""
        return self._key("*")

    def tickets(self, kind: str) -> str:
        """Stream of issued tickets of a kind; consumer group `generators`."""
        return self._key("tickets", kind)

    def rollouts(self, kind: str) -> str:
        """Stream of published groups of a kind; consumer group `learner`."""
        return self._key("rollouts", kind)

    def streams(self, kind: str) -> dict[str, tuple[str, str]]:
        """Both streams of a kind by name, each with the consumer group that reads it."""
        return {"tickets": (self.tickets(kind), GENERATORS), "rollouts": (self.rollouts(kind), LEARNER)}

    @property
    def dead_letters(self) -> str:
        """Stream of what failed or could not be read, with the reason: an audit log of bounded length."""
        return self._key("dead_letters")

    @property
    def dead_letters_dropped(self) -> str:
        """Counter of dead letters that gave way to newer ones."""
        return self._key("dead_letters_dropped")

    @property
    def audit(self) -> str:
        """Stream of notes on groups, for people: an audit log of bounded length."""
        return self._key("audit")

    @property
    def requeue(self) -> str:
        """List of ids of train tickets whose problems are to be issued again, oldest first: pushed by hand alone."""
        return self._key("requeue")

    def unsettled(self, kind: str) -> str:
        """Hash ticket_id → min_policy_version of every ticket without a final verdict."""
        return self._key("unsettled", kind)

    def ledger(self, kind: str) -> str:
        """Hash of counters: issued, each verdict, and (train) sequence, step, policy_version, observed,
        drawn:PART, walked:PART."""
        return self._key("ledger", kind)

    @property
    def writer(self) -> str:
        """Who writes the books, and how many commits there were: `epoch commits owner`."""
        return self._key("writer")

    @property
    def journal(self) -> str:
        """List of the steps committed since the last durable checkpoint, oldest first."""
        return self._key("journal")

    @property
    def observations(self) -> str:
        """List of how groups did since the last durable checkpoint, oldest first: what a curriculum goes by."""
        return self._key("observations")

    def since_checkpoint(self) -> tuple[str, str]:
        """Lists that every durable checkpoint makes shorter."""
        return self.journal, self.observations

    @property
    def policy(self) -> str:
        """The pointer: number of the newest complete policy version; a pub/sub channel of that name wakes readers."""
        return self._key("policy")

    @property
    def policy_leases(self) -> str:
        """Hash reader → `version expiry` (seconds since the epoch): versions that a live generator still reads."""
        return self._key("policy_leases")

    @property
    def weights(self) -> str:
        """Hash version → what its shipment consists of, JSON: complete versions alone (backend `redis`)."""
        return self._key("weights")

    def weight_chunk(self, shipment: str, number: int | str) -> str:
        """One chunk of a shipment's files, a zstd frame."""
        return self._key("weights", shipment, str(number))

    @property
    def shipments(self) -> str:
        """Hash shipment → number of its chunks: those that are incomplete, or no version's any more."""
        return self._key("shipments")

    @property
    def late(self) -> str:
        """Counter of groups that a late owner published after another had: dropped."""
        return self._key("late")

    @property
    def generators(self) -> str:
        """Hash name → time (seconds since the epoch) until which a generator counts as live."""
        return self._key("generators")

    @property
    def recipe(self) -> str:
        """The resolved recipe, JSON."""
        return self._key("recipe")

    @property
    def fingerprint(self) -> str:
        """Hash of what both sides must agree on: model, tokenizer, group size, temperature, task."""
        return self._key("fingerprint")

    @property
    def task_card(self) -> str:
        """The TaskCard, JSON, registered by the first generator."""
        return self._key("task_card")

    @property
    def finished(self) -> str:
        """Why the run ended; absent while it runs. Generators leave when it appears."""
        return self._key("finished")
