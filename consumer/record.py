"""What a step says of itself: one JSON line in `steps.jsonl`, and the same figures as metrics.

Invariant: `reward` is the mean over *all* groups consumed since the last step, degenerate ones included; a mean over
the trained ones alone would hide that the easy ones are gone. Refuses to know where groups come from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker.files import disk_full
from broker.ledger import Verdict
from broker.schema import RolloutGroup
from consumer.figures import StepStats
from monitoring.metrics import LearnerMetrics

MOST_UNWRITTEN = 1000  # lines that wait for room on the disk


class StepTally:
    """Adds up what is consumed between two steps, and writes the line."""

    def __init__(self, path: Path, steps: int, metrics: LearnerMetrics, clock: Callable[[], float] = time.time) -> None:
        self._path, self._steps, self._metrics, self._clock = path, steps, metrics, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._since = clock()
        self._unwritten: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self._groups: Counter[str] = Counter()
        self._rewards: list[float] = []
        self._lengths: list[int] = []
        self._truncated = 0
        self._wait_seconds = 0.0

    def consumed(self, group: RolloutGroup, verdict: Verdict) -> None:
        """A group was used up."""
        self._groups[verdict] += 1
        self._rewards += [r.reward for r in group.rollouts]
        self._lengths += [len(r.tokens) for r in group.rollouts]
        self._truncated += sum(r.truncated for r in group.rollouts)
        self._metrics.verdicts.labels(verdict=verdict).inc()

    def failed(self) -> None:
        """A ticket was settled as failed without a readable group."""
        self._groups["failed"] += 1
        self._metrics.verdicts.labels(verdict="failed").inc()

    def waited(self, seconds: float) -> None:
        """The learner waited this long for its batch."""
        self._wait_seconds += seconds

    def step(
        self,
        stats: StepStats,
        *,
        step: int,
        version: int,
        buffer: int,
        publish_seconds: float,
        curriculum: Mapping[str, Any],
    ) -> None:
        """Write the line of a step and begin the next tally.

        Its `phase_seconds` are the update's own; `loop_seconds` are those of what the learner did around it since the
        step before: it waited, claimed, published, began a checkpoint.
        """
        now = self._clock()
        samples = max(1, len(self._rewards))
        record: dict[str, Any] = {
            "time": now,
            "step": step,
            "steps": self._steps,
            "policy_version": version,
            "reward": sum(self._rewards) / samples,
            "samples": len(self._rewards),
            "groups": {v: self._groups[v] for v in ("trained", "degenerate", "stale", "failed")},
            "completion_tokens": sum(self._lengths),
            "completion_length": sum(self._lengths) / samples,
            "truncated_fraction": self._truncated / samples,
            "seconds": now - self._since,
            "wait_seconds": self._wait_seconds,
            "publish_seconds": publish_seconds,
            "buffer": buffer,
            "curriculum": curriculum,
            "loop_seconds": {phase: round(seconds, 6) for phase, seconds in self._metrics.lap().items()},
            **dataclasses.asdict(stats),
        }
        self._write(record)
        self._metrics.observe_step(record)
        self._since = now
        self._reset()

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write the line of a finished evaluation."""
        self._write({"time": self._clock(), "eval": record})
        self._metrics.observe_evaluation(record)

    def ended(self, outcome: str, groups: Mapping[Verdict, int]) -> None:
        """Write the last line: why the run is over (`finished`, `solved`, `no signal`), and the ledger's verdicts.

        The steps' own counts can fall short of these: of what was settled when a learner was killed, or after the last
        step, no step tells.
        """
        self._write({"time": self._clock(), "outcome": outcome, "groups": dict(groups)})

    def _write(self, record: dict[str, Any]) -> None:
        """A disk without room ends no run: what it refuses is kept, the newest lines of it, for the next attempt."""
        self._unwritten.append(json.dumps(record) + "\n")
        del self._unwritten[:-MOST_UNWRITTEN]
        rest = "".join(self._unwritten).encode()
        with self._path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError as error:
                if not disk_full(error):
                    raise
                if file.seek(0, os.SEEK_END) > end:  # no half of a line for the next one to be glued to
                    file.truncate(end)
                return
        self._unwritten.clear()
