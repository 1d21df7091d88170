"""What the learner tells the audit log of a group: its verdict, and the numbers that led there.

Invariant: nothing here is of consequence to the books. A step that was taken and not committed, because the learner
died, is taken again and told of again: the last note counts. Refuses to know text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from broker.audit import REASON, Share, Use, Used, clean
from broker.audit_log import AuditLog
from broker.schema import RolloutGroup
from broker.streams import Arrival, added_at
from consumer.buffer import Held
from consumer.position import Position
from consumer.uses import Uses


@dataclass
class Accounts:
    """Of one learner."""

    log: AuditLog
    at: Position
    most: int  # staleness that is allowed, versions

    def dropped(self, held: Held, verdict: Used) -> None:
        """A group was used up without training."""
        step, version = self.at.step, self.at.version
        self.log.write(held.group.ticket_id, partial(_dropped, held, verdict, step, version, self.most))

    def malformed(self, arrival: Arrival) -> None:
        """An answer that cannot be read."""
        step, version = self.at.step, self.at.version
        self.log.write(arrival.ticket_id, partial(_malformed, arrival, step, version))

    def trained(self, batch: Sequence[Held], uses: Uses | None, version: int) -> None:
        """A batch was trained on by a learner at `version`, which has taken its step by now."""
        for number, held in enumerate(batch):
            self.log.write(held.group.ticket_id, partial(_trained, held, number, uses, self.at.step, version))


def _trained(held: Held, number: int, uses: Uses | None, step: int, version: int) -> Use:
    group = held.group
    return _use(held, "trained", step, version, "", _plain(group) if uses is None else uses.shares(number, group))


def _dropped(held: Held, verdict: Used, step: int, version: int, most: int) -> Use:
    group = held.group
    reason = group.failed
    if verdict == "stale":
        reason = f"its oldest token is of version {group.oldest_version}, {version - group.oldest_version} versions old"
        reason += f", and {most} are allowed"
    return _use(held, verdict, step, version, reason, _plain(group))


def _malformed(arrival: Arrival, step: int, version: int) -> Use:
    return Use(
        ticket_id=clean(arrival.ticket_id)[:64],
        verdict="failed",
        reason=clean(arrival.malformed)[:REASON],
        published_at=added_at(arrival.entry_id),
        step=step,
        version=version,
    )


def _use(
    held: Held,
    verdict: Used,
    step: int,
    version: int,
    reason: str,
    shares: tuple[Share, ...],
) -> Use:
    group = held.group
    return Use(
        ticket_id=group.ticket_id,
        verdict=verdict,
        reason=clean(reason)[:REASON],
        generator=clean(group.generator),
        sample_seconds=group.sample_seconds,
        published_at=added_at(held.entry_id),
        step=step,
        version=version,
        staleness=version - group.oldest_version if group.rollouts else None,
        rollouts=shares,
    )


def _plain(group: RolloutGroup) -> tuple[Share, ...]:
    return tuple(Share(reward=float(r.reward), tokens=len(r.tokens)) for r in group.rollouts)
