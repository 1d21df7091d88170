"""A run's steps from what Prometheus has stored of its learner: counters at moments become records of the time between.

Invariant: each difference is of one process; one that begins at 0 again is counted from there, and never backwards.
Refuses to know how Prometheus is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.ledger import VERDICTS
from monitoring.progress import Evaluation, EvaluationRecord, Record, StepRecord
from monitoring.prometheus_api import Series

PREFIX = "headrace_learner_"
# What is asked for, and the label that tells the series of a name apart.
NAMES: Mapping[str, str] = {
    "step": "", "steps_total": "", "step_seconds_sum": "", "last_step_timestamp_seconds": "", "tokens_total": "",
    "groups_total": "verdict", "phase_seconds_total": "phase", "policy_version": "", "reward": "",
    "completion_length": "", "staleness_versions_bucket": "le", "staleness_versions_sum": "", "staleness_max": "",
    "eval_pass_at": "k", "setting": "name", "process_start_time_seconds": "",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What a learner said at `time`, by name, or by `name/label`."""

    time: float
    figures: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        """0 where there is none, or it is no number."""
        value = self.figures.get(name, 0.0)
        return value if math.isfinite(value) else 0.0

    @property
    def taken(self) -> float:
        """When the last step was, 0 before this process has taken one."""
        return self["last_step_timestamp_seconds"]

    def follows(self, before: Point) -> bool:
        """It is of the same process."""
        same = abs(self["process_start_time_seconds"] - before["process_start_time_seconds"]) < 1.0
        return same and self["steps_total"] >= before["steps_total"]


def points_of(series: Iterable[Series]) -> list[Point]:
    """In order of time; where two learners are remembered at once, the one that was started last."""
    found: dict[float, dict[str, dict[str, float]]] = {}
    for one in series:
        name = one.labels["__name__"].removeprefix(PREFIX)
        label = NAMES[name]
        key = f"{name}/{one.labels[label]}" if label else name
        for time, value in zip(one.times, one.values, strict=True):
            found.setdefault(time, {}).setdefault(one.labels.get("instance", ""), {})[key] = value
    alternatives = ([Point(time, figures) for figures in by.values()] for time, by in sorted(found.items()))
    return [max(points, key=lambda point: point["process_start_time_seconds"]) for points in alternatives]


class Tally:
    """Makes a record of each point at which steps had been taken since the one before."""

    def __init__(self) -> None:
        self._before = Point(0.0, {})
        self._passed: float | None = None

    def take(self, point: Point) -> list[Record]:
        """The records that are due."""
        return [*self._evaluated(point), *self._stepped(point)]

    def _evaluated(self, point: Point) -> list[Record]:
        passed = point.figures.get("eval_pass_at/1")
        if passed is None or passed == self._passed:
            return []
        label, self._passed = "first" if self._passed is None else "latest", passed
        evaluation = Evaluation(samples=0, pass_at_1=passed, label=label, policy_version=int(point["policy_version"]))
        return [EvaluationRecord(time=point.time, eval=evaluation)]

    def _stepped(self, point: Point) -> list[Record]:
        if not point.follows(self._before):
            self._before = Point(0.0, {})
        before = self._before
        if point.taken <= before.taken:
            return []
        self._before = point
        return [_record(point, before)]


def _record(point: Point, before: Point) -> StepRecord:
    def grown(name: str) -> float:
        return max(0.0, point[name] - before[name])

    groups = {verdict: round(grown(f"groups_total/{verdict}")) for verdict in VERDICTS[:4]}
    samples = round(sum(groups.values()) * point["setting/group_size"])
    ages = _ages(point, before)
    tokens = sum(ages.values())
    return StepRecord(
        time=point.taken,
        step=round(point["step"]),
        steps=round(point["setting/steps"]),
        covers=max(1, min(round(grown("steps_total")), round(point["step"]))),
        policy_version=round(point["policy_version"]),
        reward=point["reward"],
        samples=samples,
        groups=groups,
        completion_tokens=round(samples * point["completion_length"]),
        seconds=grown("step_seconds_sum"),
        wait_seconds=grown("phase_seconds_total/wait"),
        tokens=round(grown("tokens_total")),
        staleness_mean=grown("staleness_versions_sum") / tokens if tokens else 0.0,
        staleness_max=max([round(point["staleness_max"]), *ages]),
        staleness_histogram=ages,
    )


def _ages(point: Point, before: Point) -> dict[int, int]:
    """Tokens by age; those beyond the last bucket at the mean of their ages."""
    prefix = "staleness_versions_bucket/"
    bounds = sorted(float(key.removeprefix(prefix)) for key in point.figures if key.startswith(prefix))
    below, ages = 0.0, dict[int, int]()
    names = {float(key.removeprefix(prefix)): key for key in point.figures if key.startswith(prefix)}
    for bound in bounds:
        until = max(below, point[names[bound]] - before[names[bound]])
        count, below = round(until - below), until
        if count and math.isfinite(bound):
            ages[int(bound)] = count
        elif count:
            known = sum(age * n for age, n in ages.items())
            beyond = (point["staleness_versions_sum"] - before["staleness_versions_sum"] - known) / count
            ages[max(int(bounds[-2]) + 1 if len(bounds) > 1 else 0, round(beyond))] = count
    return ages
