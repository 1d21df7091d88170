"""The collapse guard: ends a run whose gradients or importance weights have said for a while that it is lost.

Invariant: one step out of range is an accident, `guard_steps` in a row are none; a step within all ranges begins the
count anew, and nothing that is not a number is within one. Refuses to know what a collapse comes from, and who
stops the run.

The effective sample size is that of the weights π_prox/μ before truncation, as a fraction: at 0.01 one token in a
hundred decides. The norm is that of the gradient before it is clipped; an update that was thrown away has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from broker.errors import Refused
from consumer.settings import LearnerSettings


class Figures(Protocol):
    """What is looked at of a step."""

    @property
    def ess(self) -> float:
        """Effective sample size of the step's tokens, a fraction in (0, 1]."""

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""


@dataclass
class CollapseGuard:
    """Every step that is taken, or repeated after a restart, is shown to it in order."""

    settings: LearnerSettings
    uneasy: int = 0  # steps in a row that were out of range; meanwhile the newest checkpoint must stay a good one
    complaints: set[str] = field(default_factory=set)  # of all these steps
    last: dict[str, float] = field(default_factory=dict)  # complaint → the figure, of the newest of them

    def look(self, figures: Figures) -> None:
        """A step was taken."""
        if not self.settings.guard_steps:
            return
        self.last = dict(self._out_of_range(figures))
        self.uneasy = self.uneasy + 1 if self.last else 0
        self.complaints = {*self.complaints, *self.last} if self.last else set()

    @property
    def verdict(self) -> str:
        """Why the run should end, in words; '' if it should not."""
        if not self.settings.guard_steps or self.uneasy < self.settings.guard_steps:
            return ""
        now = ", ".join(f"{figure:.3g}" for figure in self.last.values())
        return f"{' or '.join(sorted(self.complaints))} for {self.uneasy} steps in a row (now {now})"

    def collapse(self, step: int, good: int, checkpoints: Path) -> Refused:
        """What ends the run at `step`, and how it can go on from the checkpoint of the step `good`."""
        return Refused(
            f"the run has collapsed by step {step}: {self.verdict}",
            f"the last good checkpoint is that of step {good}, in {checkpoints}; the same command goes on from it and "
            "repeats the steps since, so first lower learner.learning_rate, say, or widen the range (learner.guard_…)",
        )

    def _out_of_range(self, figures: Figures) -> Mapping[str, float]:
        """Said so that NaN is out of every range."""
        settings, out = self.settings, dict[str, float]()
        if not figures.ess >= settings.guard_min_ess:
            out[f"the effective sample size was below {settings.guard_min_ess:g}"] = figures.ess
        if not figures.grad_norm <= settings.guard_max_grad_norm:
            out[f"the gradient norm was above {settings.guard_max_grad_norm:g} or not finite"] = figures.grad_norm
        return out
