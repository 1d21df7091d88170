"""How far a run has come: `steps.jsonl`, read as it grows.

Invariant: a line counts once its newline is there, and of two lines of the same step the later one holds: a learner
that was killed between writing a step and committing it takes that step again. Refuses to know processes and screens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERDICTS = ("trained", "degenerate", "stale", "failed")
RECENT = 5  # steps in "the last steps" and "the first steps"


# Bounds so wide that no run meets them: sums over a run stay finite whatever a line claims.
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=-1e12, le=1e12)]  # clocks are set back at times
Reward = Annotated[float, Field(ge=-1e40, le=1e40)]


class _Line(BaseModel):
    """Only what the views use; a line may hold more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StepRecord(_Line):
    """One optimizer step. `seconds` since the step before, `wait_seconds` of them waiting for groups."""

    time: Seconds  # since the epoch
    step: Count
    steps: Count
    policy_version: Count
    reward: Reward
    samples: Count
    groups: dict[str, Count]
    completion_tokens: Count
    seconds: Seconds
    wait_seconds: Seconds
    tokens: Count
    staleness_mean: float
    staleness_max: Count
    staleness_histogram: dict[Count, Count]


class Figures(_Line):
    """What came of held-out problems; pass@1 and the means are None if every ticket of them failed."""

    samples: Count
    pass_at_1: Reward | None
    problems: Count = 0
    pass_at_1_error: Reward | None = None
    pass_at: dict[str, Reward] = {}
    majority_at: dict[str, Reward] = {}
    reward: Reward | None = None
    mean_length: Reward | None = None
    truncated_fraction: Reward | None = None


class Evaluated(Figures):
    """One task's problems of one level."""

    task: str
    level: str


class Evaluation(Figures):
    """All problems of one evaluation, and each task and level where there are several."""

    label: str
    policy_version: Count
    newest_version: Count = 0
    failed: Count = 0
    by: list[Evaluated] = []


class EvaluationRecord(_Line):
    """One evaluation and when it was complete."""

    time: Seconds
    eval: Evaluation


class OutcomeRecord(_Line):
    """Why the run is over: `finished`, `solved` or `no signal`."""

    time: Seconds
    outcome: str


Record = StepRecord | EvaluationRecord | OutcomeRecord
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@dataclass(frozen=True)
class Stretch:
    """Some steps in a row, added up. Means are None where there is nothing to take the mean of."""

    records: Sequence[StepRecord]

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


class Progress:
    """The steps and evaluations so far. `read` takes in what has been written since."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._clear()

    def _clear(self) -> None:
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvaluationRecord] = []
        self.ending: OutcomeRecord | None = None
        self.unreadable = 0
        self.whole = Stretch(())

    def read(self) -> list[Record]:
        """The records that are new, in order; only new bytes are looked at."""
        data = self._new_bytes()
        self._offset += len(data)
        new = [record for line in data.splitlines() if (record := self._parse(line))]
        for record in new:
            self._add(record)
        if new:
            self.whole = Stretch(tuple(self.steps))
        return new

    def first(self, count: int = RECENT) -> Stretch:
        """The first steps."""
        return Stretch(self.steps[:count])

    def last(self, count: int = RECENT) -> Stretch:
        """The last steps."""
        return Stretch(self.steps[-count:])

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

    def _new_bytes(self) -> bytes:
        """From where we are to the last newline."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:  # the folder was begun anew under our eyes
                    self._offset = 0
                    self._clear()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _parse(self, line: bytes) -> Record | None:
        try:
            return _RECORD.validate_json(line)
        except ValidationError:
            self.unreadable += 1
            return None

    def _add(self, record: Record) -> None:
        if isinstance(record, OutcomeRecord):
            self.ending = record
            return
        if isinstance(record, StepRecord):
            self.ending = None  # it went on after all
            while self.steps and self.steps[-1].step >= record.step:
                self.steps.pop()
            self.steps.append(record)
            return
        key = (record.eval.label, record.eval.policy_version)
        kept = [r for r in self.evaluations if (r.eval.label, r.eval.policy_version) != key]
        self.evaluations = [*kept, record]


def _ratio(amount: float, of: float) -> float | None:
    return amount / of if of else None
