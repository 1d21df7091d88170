"""What arrives at the learner, and where it belongs: the buffer, the evaluations, or the dead letters.

Invariant: every entry that Redis hands over is kept until its ticket is settled, or refused with a reason; one that is
read again changes nothing, and one that replaces a group that Redis has lost takes its place. Refuses to know when a
group is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from broker.points import reached
from broker.streams import Arrival, RolloutStream
from consumer.account import Accounts
from consumer.buffer import StalenessBuffer
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from consumer.record import StepTally
from consumer.streak import Streak
from monitoring.metrics import LearnerMetrics

CLAIM_SECONDS = 0.5  # longest wait for a group in one call: how soon a stop or a publication's failure is noticed
CLAIM_COUNT = 64


@dataclass
class Inbox:
    """Of one learner."""

    rollouts: RolloutStream
    dispatch: Dispatch
    buffer: StalenessBuffer
    evaluator: Evaluator
    tally: StepTally
    metrics: LearnerMetrics
    streak: Streak
    accounts: Accounts
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("learner"))

    def take_in(self) -> int:
        """What has arrived, or arrives within half a second; how many groups.

        Raises `Behind` or `Fenced` where a new connection leads to other books than ours.
        """
        if self.rollouts.disturbed:
            self.dispatch.ledger.fence.check()
            with self.dispatch.lock:  # what a checkpoint settled between the two would be nobody's any more
                return self._received(self.rollouts.pending())
        with self.metrics.phase("wait"):
            arrivals = self.rollouts.claim(CLAIM_COUNT, CLAIM_SECONDS)
        return self._received(arrivals)

    def _received(self, arrivals: Sequence[Arrival]) -> int:
        if arrivals:
            reached("learner.claimed")
        with self.metrics.phase("claim"):
            for arrival in arrivals:
                self.receive(arrival)
        return len(arrivals)

    def receive(self, arrival: Arrival) -> None:
        """One entry."""
        self.metrics.progress()
        if arrival.kind == "eval":
            self.evaluator.add(arrival)
        elif (held := self._entry_of(arrival.ticket_id)) == arrival.entry_id:
            return  # read again after the connection broke
        elif held is not None and not self.rollouts.holds(arrival.kind, held):
            self._replace(arrival)
        elif not self.dispatch.expects(arrival.ticket_id) or held is not None:
            self.log.warning("a stranger's message, or a copy", ticket=arrival.ticket_id, reason=arrival.malformed)
            self.dispatch.discard(arrival, arrival.malformed or "no such ticket, or a copy")
        elif arrival.group is None:
            self.log.warning("malformed group", ticket=arrival.ticket_id, reason=arrival.malformed)
            self.tally.failed()
            self.dispatch.refuse(arrival, arrival.malformed)
            self.accounts.malformed(arrival)
        else:
            self.buffer.add(arrival)
            if not arrival.group.failed and not arrival.group.degenerate:
                self.streak.signal()

    def _entry_of(self, ticket_id: str) -> bytes | None:
        held = self.buffer.held.get(ticket_id)
        return self.dispatch.entry_ids.get(ticket_id) if held is None else held.entry_id

    def _replace(self, arrival: Arrival) -> None:
        """Redis has lost the group that we hold, and the ticket was answered again: from now on this is its group."""
        self.log.warning("a group that Redis had lost came again", ticket=arrival.ticket_id)
        if arrival.ticket_id in self.buffer:
            self.buffer.remove(arrival.ticket_id)
            self.receive(arrival)
        else:
            self.dispatch.adopt(arrival)
