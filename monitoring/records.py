"""The lines of `steps.jsonl`, as far as views use them.

Invariant: a line that was read keeps the bounds of its fields, so that sums over a run are finite whatever it claims.
Refuses to know files.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

# Bounds so wide that no run meets them: sums over a run stay finite whatever a line claims.
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=-1e12, le=1e12)]  # clocks are set back at times
Reward = Annotated[float, Field(ge=-1e40, le=1e40)]
Known = Annotated[float | None, BeforeValidator(lambda value: value if _finite(value) else None)]
Phases = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[Seconds, Field(ge=0)]], Field(max_length=32)]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class _Line(BaseModel):
    """Only what the views use; a line may hold more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StepRecord(_Line):
    """One optimizer step. `seconds` since the step before, `wait_seconds` of them waiting for groups.

    Seen from afar it may cover several steps, up to this one: `reward` is then of the last alone, the rest of all.
    """

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
    covers: Annotated[int, Field(ge=1, lt=2**53)] = 1
    loop_seconds: Phases = {}
    phase_seconds: Phases = {}
    train_seconds: Known = None
    publish_seconds: Known = None
    ess: Known = None
    entropy: Known = None


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
RECORD: TypeAdapter[Record] = TypeAdapter(Record)
