"""Run folders as a learner leaves them: the lines come from the production StepTally, on a clock of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from broker.ledger import Verdict
from broker.run_folder import RunFolder
from broker.schema import Rollout, RolloutGroup, VersionSpan
from consumer.figures import StepStats
from consumer.record import StepTally
from deploy.recipe import Recipe
from monitoring.metrics import LearnerMetrics
from tests.consumer.one_step import step_stats

BEGAN = 1_700_000_000.0
TOKENS = 10  # of each completion
GROUP = 4
CURRICULUM = {"epochs": {"sums": 0.5}, "problems": {"never": 2, "sometimes": 3, "always": 0}}


def group(rewards: list[float]) -> RolloutGroup:
    """A group as a generator publishes it; only rewards and lengths matter to a view."""
    tokens, logprobs = np.zeros(TOKENS, np.int32), np.zeros(TOKENS, np.float32)
    spans = (VersionSpan(0, 0, TOKENS),)
    rollouts = tuple(Rollout(tokens, logprobs, spans, reward, {"correct": reward}) for reward in rewards)
    return RolloutGroup("t", "train", 0, np.zeros(3, np.int32), rollouts)


def stats(ages: dict[int, int]) -> StepStats:
    """Figures of a step that trained on tokens of these ages."""
    total = sum(ages.values())
    return step_stats(
        loss=0.1,
        grad_norm=float("nan"),  # a thrown-away update leaves NaN in its line
        tokens=total,
        padded_tokens=total,
        ess=0.9,
        ratio_max=1.1,
        staleness_mean=sum(a * n for a, n in ages.items()) / total,
        staleness_max=max(ages),
        staleness_histogram=ages,
        train_seconds=4.0,
        phase_seconds={"pack": 0.25, "forward_backward": 3.25, "optimizer": 0.5},
    )


@dataclass
class Run:
    """A run in `directory`, told step by step."""

    directory: Path
    name: str = "demo"
    steps: int = 45
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    now: float = BEGAN

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.directory / self.name)
        self.metrics = LearnerMetrics()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.recipe.write_text(tomli_w.dumps(self.recipe()))
        self.restart()

    def recipe(self) -> dict[str, Any]:
        """As the launcher resolves it."""
        document: dict[str, dict[str, Any]] = {
            "run": {
                "name": self.name,
                "model": "/somewhere/models/smollm2-135m-instruct",
                "seed": 3,
                "steps": self.steps,
                "directory": str(self.directory),
            },
            "sampling": {"group_size": GROUP, "max_tokens": 16},
            "task": {"name": "addition"},
            "monitoring": {"learner_port": 0, "generator_port": 0, "exporter_port": 0, "prometheus_port": 1},
        }
        for section, values in self.sections.items():
            document.setdefault(section, {}).update(values)
        return Recipe.model_validate(document).plain()

    def restart(self) -> None:
        """A new learner process writes from here on."""
        self.tally = StepTally(self.folder.steps, self.steps, self.metrics, clock=lambda: self.now)

    def evaluate(self, label: str, version: int, pass_at_1: float | None, samples: int = 200) -> None:
        """An evaluation is complete."""
        record = {"label": label, "policy_version": version, "newest_version": version, "problems": samples // 8}
        at = {} if pass_at_1 is None else {"1": pass_at_1, "8": min(1.0, 2 * pass_at_1)}
        majority_at = {} if pass_at_1 is None else {"8": pass_at_1}
        figures = {"samples": samples, "pass_at_1": pass_at_1, "pass_at": at, "majority_at": majority_at}
        self.tally.evaluation(record | {"failed": 0, "by": []} | figures)

    def step(
        self,
        number: int,
        rewards: dict[Verdict, list[list[float]]],
        ages: dict[int, int] | None = None,
        seconds: float = 10.0,
        waited: float = 2.0,
    ) -> None:
        """A step `seconds` after the one before: the rewards of each group by verdict, trained tokens by age."""
        for verdict, groups in rewards.items():
            for one in groups:
                self.tally.consumed(group(one), verdict)
        self.tally.waited(waited)
        self.now += seconds
        self.tally.step(
            stats(ages or {0: 10, 1: 30}),
            step=number,
            version=number,
            buffer=0,
            publish_seconds=0.0,
            curriculum=CURRICULUM,
        )

    def plain_step(self, number: int, reward: float = 0.5, **more: Any) -> None:
        """A step of two trained groups and a degenerate one, with this mean reward of the trained."""
        mixed = [[reward * 2, 0.0] * 2] * 2
        self.step(number, {"trained": mixed, "degenerate": [[reward] * GROUP]}, **more)

    def end(self, outcome: str = "finished") -> None:
        """The learner has said why it ends and has written its model, the last thing it does."""
        self.tally.ended(outcome, {})
        self.folder.model.mkdir()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.steps.read_text().splitlines()]
