"""How far a run has come: its records, and `steps.jsonl`, which holds them, read as it grows.

Invariant: a line counts once its newline is there, and of two records of the same step the later one holds: a learner
that was killed between writing a step and committing it takes that step again. Refuses to know processes and screens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from monitoring.records import RECORD, Evaluation, EvaluationRecord, Figures, OutcomeRecord, Record, StepRecord
from monitoring.tail import Tail

__all__ = [
    "Evaluation",
    "EvaluationRecord",
    "Figures",
    "History",
    "OutcomeRecord",
    "Progress",
    "Record",
    "StepRecord",
    "Stretch",
]

VERDICTS = ("trained", "degenerate", "stale", "failed")
RECENT = 5  # steps in "the last steps" and "the first steps"


@dataclass(frozen=True)
class Stretch:
    """Some steps in a row, added up. Means are None where there is nothing to take the mean of."""

    records: Sequence[StepRecord]

    @cached_property
    def steps(self) -> int:
        """How many they are."""
        return sum(r.covers for r in self.records)

    @property
    def complete(self) -> bool:
        """Each of them has its own record."""
        return self.steps == len(self.records)

    @cached_property
    def reward(self) -> float | None:
        """Mean over all samples of all groups consumed, degenerate ones included."""
        return _ratio(sum(r.reward * r.samples for r in self.records), sum(r.samples for r in self.records))

    @cached_property
    def ages(self) -> dict[int, int]:
        """Trained tokens by staleness (versions), youngest first."""
        total: Counter[int] = Counter()
        for record in self.records:
            total.update(record.staleness_histogram)
        return dict(sorted(total.items()))

    @cached_property
    def staleness_mean(self) -> float | None:
        """Mean staleness of the tokens trained on, versions."""
        return _ratio(sum(age * count for age, count in self.ages.items()), sum(self.ages.values()))

    @cached_property
    def staleness_max(self) -> int | None:
        """Oldest token trained on, versions."""
        return max((r.staleness_max for r in self.records), default=None)

    @cached_property
    def groups(self) -> dict[str, int]:
        """Groups by verdict."""
        return {v: sum(r.groups.get(v, 0) for r in self.records) for v in VERDICTS}

    @cached_property
    def seconds(self) -> float:
        """From the step before the first one to the last one, times when nothing ran left out."""
        return sum(r.seconds for r in self.records)

    @cached_property
    def sampled(self) -> int:
        """Completion tokens of all groups consumed."""
        return sum(r.completion_tokens for r in self.records)

    @cached_property
    def trained(self) -> int:
        """Completion tokens trained on."""
        return sum(r.tokens for r in self.records)

    def per_second(self, amount: float) -> float | None:
        """`amount` spread over the time of these steps."""
        return _ratio(amount, self.seconds)

    @property
    def wait_fraction(self) -> float | None:
        """Part of the time in which the learner waited for groups."""
        return self.per_second(sum(r.wait_seconds for r in self.records))


class History:
    """The steps and evaluations so far, and why the run is over."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvaluationRecord] = []
        self.ending: OutcomeRecord | None = None
        self.whole = Stretch(())

    def add(self, records: Sequence[Record]) -> None:
        """Take in records, in order."""
        for record in records:
            self._add(record)
        if records:
            self.whole = Stretch(tuple(self.steps))

    def first(self, count: int = RECENT) -> Stretch:
        """The first steps: `count` of them, or as many more as their records tell of together."""
        return Stretch(self.steps[: _reach(self.steps, count)])

    def last(self, count: int = RECENT) -> Stretch:
        """The last steps, in the same way."""
        return Stretch(self.steps[len(self.steps) - _reach(self.steps[::-1], count) :])

    @property
    def under_way(self) -> Stretch:
        """All steps but the first, whose time includes the start of the engines, as far as there are others."""
        return Stretch(self.steps[1:]) if len(self.steps) > 1 else self.whole

    @property
    def outcome(self) -> str | None:
        """Why the run is over, None while it is not."""
        return self.ending.outcome if self.ending else None

    @property
    def last_time(self) -> float | None:
        """When the last record was written."""
        ends = [*(r.time for r in self.steps[-1:]), *(r.time for r in self.evaluations[-1:])]
        return max(ends + ([self.ending.time] if self.ending else []), default=None)

    def evaluation(self, label: str | None = None) -> Evaluation | None:
        """The newest one under this label, or under any."""
        return next((r.eval for r in reversed(self.evaluations) if label in (None, r.eval.label)), None)

    def _add(self, record: Record) -> None:
        if isinstance(record, OutcomeRecord):
            self.ending = record
            return
        if isinstance(record, StepRecord):
            self.ending = None  # it went on after all
            while self.steps and self.steps[-1].step > record.step - record.covers:
                self.steps.pop()
            self.steps.append(record)
            return
        key = (record.eval.label, record.eval.policy_version)
        kept = [r for r in self.evaluations if (r.eval.label, r.eval.policy_version) != key]
        self.evaluations = [*kept, record]


class Progress(History):
    """A run's history as its folder has it. `read` takes in what has been written since."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._tail, self.unreadable = Tail(path), 0

    def read(self) -> list[Record]:
        """The records that are new, in order; only new bytes are looked at."""
        lines = self._tail.read()
        if self._tail.begun_anew:  # the folder was, under our eyes
            self.unreadable = 0
            self._clear()
        new = [record for line in lines if (record := self._parse(line))]
        self.add(new)
        return new

    def _parse(self, line: bytes) -> Record | None:
        try:
            return RECORD.validate_json(line)
        except ValidationError:
            self.unreadable += 1
            return None


def _reach(records: Sequence[StepRecord], count: int) -> int:
    """How many records tell of at least `count` steps."""
    steps = 0
    for number, record in enumerate(records, 1):
        steps += record.covers
        if steps >= count:
            return number
    return len(records)


def _ratio(amount: float, of: float) -> float | None:
    return amount / of if of else None
