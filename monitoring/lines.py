"""A run as log lines, where there is no terminal: one a step, an evaluation, a change of what the launcher does.

Invariant: each thing is said once; of what lies behind when the view begins, only the latest is said. Refuses to know
where lines go.
"""

from __future__ import annotations

from monitoring.progress import VERDICTS, Evaluation, EvaluationRecord, Record, StepRecord
from monitoring.sight import Sight


class Lines:
    """What has been said already."""

    def __init__(self) -> None:
        self._status = ""
        self._begun = False

    def of(self, sight: Sight) -> list[str]:
        """The lines that are due after a look."""
        new = list(sight.new) if self._begun else _latest(sight)
        self._begun = True
        before, after = self._change(sight)
        return [*before, *(_line(record, sight) for record in new), *after]

    def _change(self, sight: Sight) -> tuple[list[str], list[str]]:
        """Phases come before the steps taken under them, an end after the last one."""
        if sight.status == self._status or (sight.going and sight.status_since is None):
            return [], []
        self._status = sight.status
        line = f"{sight.name}: {sight.status}{_totals(sight) if not sight.going else ''}"
        return ([line], []) if sight.going else ([], [line])


def step_line(record: StepRecord, sight: Sight) -> str:
    """One step; tokens/s of the generators as they say, or as the step's groups show where they say nothing."""
    seconds = max(record.seconds, 1e-9)
    sampled = sight.tokens_per_second
    parts = [
        f"step{_numbers(record)}",
        f"reward {record.reward:.2f}",
        f"staleness {record.staleness_mean:.1f} (max {record.staleness_max})",
        " ".join(f"{verdict} {record.groups.get(verdict, 0)}" for verdict in VERDICTS),
        f"gen {record.completion_tokens / seconds if sampled is None else sampled:.0f} tok/s",
        f"learn {record.tokens / seconds:.0f} tok/s",
    ]
    if sight.left is not None and record is sight.step:
        parts.append(f"left {minutes(sight.left)}")
    return "  ".join(parts)


def evaluation_line(evaluation: Evaluation) -> str:
    """One evaluation."""
    result = "failed" if evaluation.pass_at_1 is None else f"{evaluation.pass_at_1:.2f}"
    about = f"{evaluation.samples} samples, " if evaluation.samples else "about "
    about += f"version {evaluation.policy_version}"
    return f"evaluation {evaluation.label}  pass@1 {result}  ({about})"


def minutes(seconds: float) -> str:
    """A length of time as a person says it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _numbers(record: StepRecord) -> str:
    """Which of how many; several where not each was seen."""
    of = f"/{record.steps}" if record.steps else ""
    return f" {record.step}{of}" if record.covers == 1 else f"s {record.step - record.covers + 1}–{record.step}{of}"


def _line(record: Record, sight: Sight) -> str:
    if isinstance(record, StepRecord):
        return step_line(record, sight)
    return evaluation_line(record.eval) if isinstance(record, EvaluationRecord) else f"outcome {record.outcome}"


def _latest(sight: Sight) -> list[Record]:
    latest: list[Record] = [*sight.progress.evaluations[-1:], *sight.progress.steps[-1:]]
    return sorted(latest, key=lambda record: record.time)


def _totals(sight: Sight) -> str:
    step, elapsed = sight.step, sight.elapsed
    if step is None or elapsed is None:
        return ", no step taken"
    return f" after step {step.step} of {step.steps}, {minutes(elapsed)}"
