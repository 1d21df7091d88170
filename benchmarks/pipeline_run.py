"""One whole run as a user starts it, and what is seen of it: speed, who waited how long, reward.

Invariant: figures are of the steps after the first `skip`, in which engines start and memory warms up; of these none is
left out. Refuses to know what runs are compared for.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from broker.run_folder import RunFolder
from monitoring.dossier import Dossier
from monitoring.records import StepRecord
from monitoring.report import read, summarise
from monitoring.timeline import of_group

LAST = 3  # steps whose mean reward is the final one


@dataclass(frozen=True)
class Ran:
    """What was seen. Seconds are a step's, on average; idle is a share of the time."""

    mode: str
    seed: int
    flags: str
    folder: str
    samples_per_second: float
    learner_idle: float
    generator_idle: float
    wait_seconds: float
    train_seconds: float
    samples: int  # of a step, on average
    reward_first: float
    reward_last: float
    staleness: float
    seconds: float

    @property
    def reward_a_minute(self) -> float:
        """By how much the reward grew, a minute."""
        return (self.reward_last - self.reward_first) / self.seconds * 60


def dossier(folder: Path) -> Dossier:
    """All that is on record of a run."""
    place = RunFolder(folder)
    return Dossier.of(place, *read(place), summarise(folder))


def play(recipe: Path, mode: str, seed: int, flags: Sequence[str], skip: int) -> Ran:
    """Run it under a name of its own. Raises `CalledProcessError` where it fails."""
    name = f"bench-{mode}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    given = ["--run.name", name, "--run.seed", str(seed), *flags]
    subprocess.run([sys.executable, "-m", "deploy.launcher", str(recipe), *given], check=True, stdout=sys.stderr)
    directory = next((Path(b) for a, b in itertools.pairwise(given) if a == "--run.directory"), Path("runs"))
    return seen(directory / name, mode, seed, " ".join(flags), skip)


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
        wait_seconds=waited / len(counted),
        train_seconds=(seconds - waited) / len(counted),
        samples=round(samples / len(counted)),
        reward_first=_reward(records[:LAST]),
        reward_last=_reward(records[-LAST:]),
        staleness=sum(record.staleness_mean for record in counted) / len(counted),
        seconds=seconds,
    )


def kept(path: Path) -> list[Ran]:
    """Runs of earlier calls."""
    return [Ran(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, ran: Ran) -> None:
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
