"""How groups did on each problem so far.

Invariant: a history is a function of the observations folded into it, in their order; that of a checkpoint and the
observations since then give the present one, to the bit. Refuses to know what is chosen by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from broker.coursebook import Observation
from broker.errors import Malformed

log = structlog.get_logger("learner")

MEMORY = 0.5  # what a group counts for when the next one of the same problem comes: the policy has changed since
State = Literal["never", "sometimes", "always"]
STATES: tuple[State, ...] = ("never", "sometimes", "always")


@dataclass(frozen=True)
class Record:
    """One problem's: completions that solved it, of so many, older ones counting less; and its groups' monotony.

    `alike`: how many groups in a row were solved by all completions or by none. `rests_until`: the first epoch of its
    part in which a curriculum that skips it asks for it again.
    """

    solved: float = 0.0
    attempts: float = 0.0
    alike: int = 0
    rests_until: int = 0

    def after(self, seen: Observation, longest_rest: int) -> Record:
        """With one more group: one without contrast doubles the rest, in epochs, up to `longest_rest`."""
        alike = self.alike + 1 if seen.solved in (0, seen.attempts) else 0
        rest = min(2 ** min(alike - 1, 30), longest_rest) if alike else -1
        return Record(
            MEMORY * self.solved + seen.solved, MEMORY * self.attempts + seen.attempts, alike, seen.epoch + 1 + rest
        )

    @property
    def state(self) -> State:
        """By the groups that still count: after ten of one kind nothing is left of what was before."""
        rate = self.solved / self.attempts
        return "never" if rate < 1e-3 else "always" if rate > 1 - 1e-3 else "sometimes"


class History:
    """Problem → record, of the problems that were observed."""

    def __init__(self, longest_rest: int, records: Mapping[int, Record] | None = None, observed: int = 0) -> None:
        self.longest_rest, self.observed = longest_rest, observed
        self._records = dict(records or {})
        self.states = Counter(record.state for record in self._records.values())

    def __getitem__(self, problem: int) -> Record:
        return self._records.get(problem, Record())

    @property
    def problems(self) -> Collection[int]:
        """Those with a record."""
        return self._records.keys()

    def copy(self) -> History:
        """One that goes its own way."""
        return History(self.longest_rest, self._records, self.observed)

    def fold(self, observations: Iterable[Observation]) -> None:
        """These came next."""
        for seen in observations:
            before = self._records.get(seen.problem)
            record = self[seen.problem].after(seen, self.longest_rest)
            if before is not None:
                self.states[before.state] -= 1
            self.states[record.state] += 1
            self._records[seen.problem] = record
            self.observed += 1

    def foreseen(self, observations: Iterable[Observation]) -> dict[int, Record]:
        """The records that would change with these."""
        changed = dict[int, Record]()
        for seen in observations:
            changed[seen.problem] = changed.get(seen.problem, self[seen.problem]).after(seen, self.longest_rest)
        return changed

    def encode(self) -> list[list[float]]:
        """As a checkpoint holds it: `[problem, solved, attempts, alike, rests_until]` of each."""
        return [[p, r.solved, r.attempts, r.alike, r.rests_until] for p, r in sorted(self._records.items())]

    @staticmethod
    def decode(raw: Any, longest_rest: int, observed: int) -> History:
        """From a checkpoint's document. Raises `Malformed`."""
        if not isinstance(raw, list):
            raise Malformed("not a history")
        return History(longest_rest, dict(map(_record, raw)), observed)


class Memory:
    """The present history, and that of the newest durable checkpoint with what was observed since then."""

    def __init__(self, durable: History) -> None:
        self._durable, self._since, self.now = durable, list[Observation](), durable.copy()

    def resume(self, observed: int, latest: Sequence[Observation]) -> None:
        """There were so many observations, of which `latest` are the newest: some of them the checkpoint may hold."""
        missing = self._more(observed)
        if missing > len(latest):
            log.warning("observations are gone from Redis", lost=missing - len(latest))
            self._durable.observed = observed - len(latest)
        self._since = list(latest[max(0, len(latest) - missing) :])
        self.now = self._durable.copy()
        self.now.fold(self._since)

    def observe(self, observations: Sequence[Observation]) -> None:
        """These came next."""
        self._since += observations
        self.now.fold(observations)

    def at(self, observed: int) -> History:
        """As it was when there were so many observations: as many as the checkpoint holds, or more."""
        history = self._durable.copy()
        history.fold(self._since[: self._more(observed)])
        return history

    def final(self, observed: int) -> None:
        """A durable checkpoint holds so many."""
        more = self._more(observed)
        self._durable.fold(self._since[:more])
        self._since = self._since[more:]

    def _more(self, observed: int) -> int:
        return max(0, observed - self._durable.observed)


def _record(raw: Any) -> tuple[int, Record]:
    if not isinstance(raw, list) or len(raw) != 5:
        raise Malformed("not a record of a history")
    problem, solved, attempts, alike, rests_until = raw
    whole = all(type(n) is int and 0 <= n < 2**53 for n in (problem, alike, rests_until))
    if not whole or not all(type(n) in (int, float) for n in (solved, attempts)) or not 0 <= solved <= attempts > 0:
        raise Malformed("a record of a history with numbers that cannot be")
    return problem, Record(float(solved), float(attempts), alike, rests_until)
