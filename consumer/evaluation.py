"""Evaluation: held-out problems as tickets of their own stream, collected until the last one is in.

Invariant: nothing here reaches the buffer; an evaluation is settled whole, after its record is written, so that a
restart repeats at most the record. Refuses to know prompts, answers and the train ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from broker.card import TaskCard
from broker.ledger import Ledger
from broker.points import reached
from broker.schema import RolloutGroup, Ticket
from broker.streams import Arrival
from consumer.passes import figures
from consumer.tickets import seed_of

Record = dict[str, Any]
Labels = Sequence[tuple[str, str]]
AT_ONCE = 2  # evaluations under way, beyond which no periodic one begins: memory is bounded, also where one hangs

log = structlog.get_logger("learner")


@dataclass
class Evaluation:
    """One pass over the first `problems` held-out problems, asked for at `policy_version`."""

    policy_version: int
    label: str
    tickets: frozenset[str]
    minimum: int  # the lowest version that a ticket of it asks for
    arrived: dict[str, tuple[bytes, RolloutGroup | None]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every ticket has come back, answered or failed."""
        return len(self.arrived) == len(self.tickets)

    def record(self, labels: Labels) -> Record:
        """The figures of all of it, and `by` task and level, the `labels` of each problem, where there are several."""
        groups = [g for _, (_, g) in sorted(self.arrived.items()) if g is not None and not g.failed]
        versions = [span.policy_version for g in groups for r in g.rollouts for span in r.spans]
        return {
            "label": self.label,
            "policy_version": self.policy_version,
            "newest_version": max(versions, default=self.policy_version),
            "failed": len(self.arrived) - len(groups),
            **figures(groups),
            "by": _by(groups, labels),
        }


def _by(groups: Sequence[RolloutGroup], labels: Labels) -> list[Record]:
    found: dict[tuple[str, str], list[RolloutGroup]] = {}
    for group in groups:
        if group.problem < len(labels):
            found.setdefault(labels[group.problem], []).append(group)
    if len(found) < 2:
        return []
    return [{"task": task, "level": level, **figures(of)} for (task, level), of in sorted(found.items())]


def labels_of(card: TaskCard) -> list[tuple[str, str]]:
    """(task, level) of each held-out problem."""
    of = [(card.parts[part].name, level) for part, level in card.labels]
    return [of[number] for number in card.held_out_labels]


def eval_id(version: int, label: str, number: int) -> str:
    """Ids name what they evaluate, so that a restarted learner knows which evaluation an answer belongs to."""
    return f"e{version:08d}-{label}-{number:06d}"


class Evaluator:
    """Issues and collects evaluations; at most one ledger transaction for each end of one."""

    def __init__(
        self, ledger: Ledger, problems: int, seed: int, record: Callable[[Record], None], labels: Labels = ()
    ) -> None:
        """`labels`: (task, level) of each held-out problem."""
        self.ledger, self._problems, self._seed, self._record, self._labels = ledger, problems, seed, record, labels
        self.running: dict[tuple[int, str], Evaluation] = {}

    def resume(self) -> None:
        """Take up the evaluations whose tickets are still unsettled, and no others."""
        self.running = {}
        for ticket_id, minimum in self.ledger.unsettled().items():
            version, label, _ = ticket_id[1:].split("-")
            key = (int(version), label)
            known = self.running.get(key)
            tickets = (known.tickets if known else frozenset()) | {ticket_id}
            lowest = min(minimum, known.minimum) if known else minimum
            self.running[key] = Evaluation(int(version), label, tickets, lowest)

    def ticket(self, ticket_id: str, min_policy_version: int) -> Ticket:
        """The ticket of that id, the same whenever it is issued."""
        number = int(ticket_id.rpartition("-")[2])
        return Ticket(ticket_id, number, seed_of(self._seed, number), min_policy_version, "eval")

    def start(self, version: int, label: str) -> bool:
        """Issue an evaluation unless this one was issued before, or is one too many; True if it was issued."""
        mark = f"{label}:{version}"
        if self._problems == 0 or mark in self.ledger.books():
            return False
        if label == "periodic" and len(self.running) >= AT_ONCE:
            log.warning("an evaluation is left out, earlier ones are still under way", version=version)
            return False
        tickets = [self.ticket(eval_id(version, label, n), version) for n in range(self._problems)]
        with self.ledger.transaction() as pipe:
            self.ledger.mark(pipe, mark, "issued")
            self.ledger.issue(pipe, tickets)
        ids = frozenset(t.ticket_id for t in tickets)
        self.running[version, label] = Evaluation(version, label, ids, version)
        return True

    def add(self, arrival: Arrival) -> None:
        """Take an answer in; the last one of an evaluation writes its record and settles it."""
        for key, evaluation in list(self.running.items()):
            if arrival.ticket_id not in evaluation.tickets:
                continue
            if evaluation.arrived.get(arrival.ticket_id, (b"", None))[0] == arrival.entry_id:
                return  # read again after the connection broke
            if arrival.ticket_id not in evaluation.arrived:
                evaluation.arrived[arrival.ticket_id] = (arrival.entry_id, arrival.group)
                reason = arrival.malformed if arrival.group is None else arrival.group.failed
                if reason:
                    with self.ledger.transaction() as pipe:
                        self.ledger.dead_letter(pipe, arrival.ticket_id, reason, arrival.payload)
                if evaluation.complete:
                    self._finish(evaluation)
                    del self.running[key]
                return
        with self.ledger.transaction() as pipe:
            self.ledger.dead_letter(
                pipe, arrival.ticket_id, arrival.malformed or "no such evaluation ticket", arrival.payload
            )
            self.ledger.discard(pipe, arrival.entry_id)

    def _finish(self, evaluation: Evaluation) -> None:
        self._record(evaluation.record(self._labels))
        reached("evaluation.recorded")
        good = [(e, t) for t, (e, g) in evaluation.arrived.items() if g is not None and not g.failed]
        bad = [(e, t) for t, (e, g) in evaluation.arrived.items() if g is None or g.failed]
        with self.ledger.transaction() as pipe:
            self.ledger.settle(pipe, good, "evaluated")
            self.ledger.settle(pipe, bad, "failed")
