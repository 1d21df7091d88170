"""Which groups may be trained on, decided the slow way: every ticket in play is gone through at every question.

Invariant: it is rule W as DESIGN.md writes it, word by word. Refuses to know how to be fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.ledger import Verdict
from broker.schema import RolloutGroup
from consumer.buffer import Bound, Held, Order, Wait


@dataclass
class SlowBuffer:
    """As `StalenessBuffer`."""

    order: Order
    keep_degenerate: bool = False
    held: dict[str, Held] = field(default_factory=dict)

    def consumed(self, in_play: Mapping[str, int], bound: Bound) -> list[tuple[Held, Verdict]]:
        out: list[tuple[Held, Verdict]] = []
        good = 0
        for ticket_id in list(in_play):
            held = self.held.get(ticket_id)
            if held is None or good == bound.groups_per_step:
                if self.order == "strict":
                    break
                if held is None:
                    continue
            verdict = self._verdict(held.group, bound)
            if verdict is None:
                good += self.order == "strict"
            else:
                out.append((self.held.pop(ticket_id), verdict))
        return out

    def take(self, in_play: Mapping[str, int], bound: Bound) -> list[Held] | Wait:
        wanted = list(in_play) if self.order == "strict" else [t for t in in_play if t in self.held]
        batch = wanted[: bound.groups_per_step]
        missing = next((t for t in batch if t not in self.held), None)
        if missing is not None:
            return Wait("ticket", missing)
        if len(batch) < bound.groups_per_step:
            return Wait("batch")
        offender = self._offender(in_play, set(batch), bound) if self.order == "ready" else None
        return [self.held.pop(t) for t in batch] if offender is None else Wait("ticket", offender)

    def _offender(self, in_play: Mapping[str, int], batch: set[str], bound: Bound) -> str | None:
        outside = [(t, m) for t, m in in_play.items() if t not in batch and bound.version - m <= bound.max_staleness]
        for ahead in range(bound.max_staleness):
            due = [t for t, m in outside if m <= bound.version - bound.max_staleness + ahead]
            if len(due) > bound.room(ahead):
                missing = next((t for t in due if t not in self.held), None)
                if missing is not None:
                    return missing
        return None

    def _verdict(self, group: RolloutGroup, bound: Bound) -> Verdict | None:
        if group.failed:
            return "failed"
        if bound.version - group.oldest_version > bound.max_staleness or group.newest_version > bound.version:
            return "stale"
        return "degenerate" if group.degenerate and not self.keep_degenerate else None
