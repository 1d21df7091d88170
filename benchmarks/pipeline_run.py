"""One whole run as a user starts it, and what is seen of it: speed, who waited how long, reward.

Invariant: figures are of the steps after the first `skip`, in which engines start and memory warms up; of these none is
left out. Refuses to know what runs are compared for.

A sample is a completion. Of a run whose sides work one after the other (`pipeline_alone`) each has its own speed.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from broker.loading import load
from broker.run_folder import RunFolder
from monitoring.dossier import Dossier
from monitoring.records import StepRecord
from monitoring.report import read, summarise
from monitoring.timeline import of_group
from producer.settings import GeneratorRecipe

LAST = 3  # steps whose mean reward is the final one


@dataclass(frozen=True)
class Ran:
    """What was seen; idle is a share of the time, `seconds` are all that were looked at."""

    mode: str
    seed: int
    flags: str
    folder: str
    samples_per_second: float
    learner_idle: float
    generator_idle: float
    publishing: float  # of the time, for which the learner stood still to publish
    reward_first: float
    reward_last: float
    staleness: float
    seconds: float

    @property
    def reward_a_minute(self) -> float:
        """By how much the reward grew, a minute."""
        return (self.reward_last - self.reward_first) / self.seconds * 60


@dataclass(frozen=True)
class Alone:
    """Seconds a sample of either side, with nobody else at work."""

    mode: str
    seed: int
    flags: str
    folder: str
    generation: float
    training: float

    @property
    def slower(self) -> float:
        """Seconds a sample of sides that never wait for each other."""
        return max(self.generation, self.training)

    @property
    def bound(self) -> float:
        """How much faster that is than one side after the other."""
        return (self.generation + self.training) / self.slower


def dossier(folder: Path) -> Dossier:
    """All that is on record of a run."""
    place = RunFolder(folder)
    return Dossier.of(place, *read(place), summarise(folder))


def play(recipe: Path, mode: str, seed: int, flags: Sequence[str], program: str = "deploy.launcher") -> Path:
    """Run it under a name of its own; its folder. Raises `CalledProcessError` where it fails."""
    name = f"bench-{re.sub('[^a-z0-9]+', '-', mode)}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    given = ["--run.name", name, "--run.seed", str(seed), *flags]
    subprocess.run([sys.executable, "-m", program, str(recipe), *given], check=True, stdout=sys.stderr)
    return next((Path(b) for a, b in itertools.pairwise(given) if a == "--run.directory"), Path("runs")) / name


def seen(folder: Path, mode: str, seed: int, flags: str, skip: int) -> Ran:
    """Of a run that is over."""
    run = dossier(folder)
    records = run.progress.steps
    counted = records[skip:]
    begin, end = records[skip - 1].time, counted[-1].time
    seconds, samples = end - begin, sum(record.samples for record in counted)
    waited = sum(record.wait_seconds for record in counted)
    return Ran(
        mode=mode,
        seed=seed,
        flags=flags,
        folder=str(folder),
        samples_per_second=samples / seconds,
        learner_idle=waited / seconds,
        generator_idle=1 - _sampling(run, begin, end) / seconds,
        publishing=sum(record.loop_seconds.get("publish", 0.0) for record in counted) / seconds,
        reward_first=_reward(records[:LAST]),
        reward_last=_reward(records[-LAST:]),
        staleness=sum(record.staleness_mean for record in counted) / len(counted),
        seconds=seconds,
    )


def seen_alone(folder: Path, mode: str, seed: int, flags: str, skip: int) -> Alone:
    """Of a run of `pipeline_alone`. Generators count while all of their slots are taken, the learner as elsewhere."""
    run = dossier(folder)
    of = load(GeneratorRecipe, RunFolder(folder).recipe, environ={})
    at = sorted(life.published_at for life in run.trail.lives if life.sampling is not None and life.published_at)
    slots = min(of.generator.slots * of.generator.count, len(at) // 3)
    full = at[slots - 1 : len(at) - slots]
    records = run.progress.steps
    trained = sum(record.samples for record in records[skip:])
    return Alone(
        mode=mode,
        seed=seed,
        flags=flags,
        folder=str(folder),
        generation=(full[-1] - full[0]) / (len(full) - 1) / of.sampling.group_size,
        training=(records[-1].time - records[skip - 1].time) / trained,
    )


def kept(path: Path) -> list[Ran | Alone]:
    """Runs of earlier calls."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Alone(**raw) if "training" in raw else Ran(**raw) for raw in map(json.loads, lines)]


def keep(path: Path, ran: Ran | Alone) -> None:
    """For later ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(ran)) + "\n")


def _reward(records: Sequence[StepRecord]) -> float:
    return sum(record.reward * record.samples for record in records) / sum(record.samples for record in records)


def _sampling(run: Dossier, begin: float, end: float) -> float:
    """Seconds in which at least one group was being sampled, on average over generators."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for life in run.trail.lives:
        if life.sampling is not None and life.published_at is not None:
            mine = spans.setdefault(life.sampling.generator, [])
            mine += [(max(s.begin, begin), min(s.end, end)) for s in of_group(life) if s.name == "sample"]
    return sum(_union(mine) for mine in spans.values()) / max(1, len(spans))


def _union(spans: Sequence[tuple[float, float]]) -> float:
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered
