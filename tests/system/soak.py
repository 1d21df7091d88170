"""`python -m tests.system.soak --minutes 10`: a run in which something is killed every few seconds (`make soak`).

It ends well if the run went on all that time, memory of both sides and Redis stayed flat, streams stayed bounded, and
the books balanced whenever they were looked at. In its middle the learner sleeps for a minute: generators fill their
capacity, idle, and go on when it wakes.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis

from broker.keys import GENERATORS
from tests.faults import Faulty
from tests.system.crash import SHARED
from tests.system.pipeline import Pipeline
from tests.system.teaching import taught_to_add

NAMES = ("learner", "one", "two")
LOOK_SECONDS, KILL_SECONDS, SLEEP_SECONDS, LEASE = 2.0, 6.0, 60.0, 2.0
RECIPE = f"{SHARED} --run.steps 1000000 --run.max_staleness 6 --learner.eval_every 50 --policy.keep 3"
RECIPE += " --learner.stop_when_solved false --learner.learning_rate 1e-5 --learner.checkpoint_every 20"
CAPACITY, GROUPS = 6, 2


@dataclass
class Series:
    """A figure over time."""

    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        self.at.append(at)
        self.values.append(value)

    @property
    def slope(self) -> float:
        """Least squares, per minute."""
        return float(np.polyfit(np.array(self.at) / 60, np.array(self.values), 1)[0]) if len(self.at) > 2 else 0.0


class Soak:
    """One run and what happens to it."""

    def __init__(self, folder: Path, minutes: float, seed: int, gentle: bool) -> None:
        flags = ["--run.model", str(taught_to_add(folder / "models")), *RECIPE.split()]
        self.run = Pipeline(folder / "runs", flags, server_class=Faulty)
        self.seconds, self.luck, self.gentle = 60 * minutes, random.Random(seed), gentle
        self.kills: dict[str, int] = {}
        self.series: dict[str, Series] = {}
        self.began: dict[str, float] = {}
        self.longest_streams = 0
        self.idle: tuple[int, int] = (0, 0)

    def play(self) -> list[str]:
        """Raises `AssertionError`; returns the report."""
        with self.run:
            for name in NAMES:
                self._start(name)
            self._until(lambda: self._step() >= 3, "it has begun")
            begun, first = time.monotonic(), self._step()
            kill_at = begun + KILL_SECONDS
            slept = False
            while (now := time.monotonic()) - begun < self.seconds:
                self._revive()
                if not self.gentle and now > kill_at:
                    self._harm()
                    kill_at = now + self.luck.uniform(0.5, 1.5) * KILL_SECONDS
                if not slept and now - begun > self.seconds / 2 and self.seconds >= 4 * SLEEP_SECONDS:
                    self._let_the_learner_sleep()
                    slept = True
                self._look(now - begun)
                time.sleep(LOOK_SECONDS)
            return self._report(self._step() - first, time.monotonic() - begun)

    def _start(self, name: str) -> None:
        self.run.start("consumer" if name == "learner" else "producer", name)
        self.began[name] = time.monotonic()

    def _revive(self) -> None:
        for name in NAMES:
            status = self.run.processes[name].poll()
            if status is not None:
                assert status == -signal.SIGKILL, f"{name} ended with {status}:\n{self.run.log(name)[-3000:]}"
                self._start(name)

    def _harm(self) -> None:
        what = self.luck.choice(["learner", "one", "two", "stop one", "restart redis", "forget"])
        self.kills[what] = self.kills.get(what, 0) + 1
        server = self.run.server
        assert isinstance(server, Faulty)
        if what in NAMES:
            self.run.processes[what].kill()
            self.run.processes[what].wait()
        elif what == "stop one":
            self.run.processes["one"].send_signal(signal.SIGSTOP)
            time.sleep(1.5 * LEASE)  # the event itself: longer than a lease
            self.run.processes["one"].send_signal(signal.SIGCONT)
        elif what == "restart redis":
            server.crash()
            server.start()
        else:
            server.remember()
            time.sleep(1.0)  # what everysec may lose
            server.forget()

    def _let_the_learner_sleep(self) -> None:
        """Back-pressure: nothing grows, and all goes on afterwards."""
        self._revive()
        self._until(lambda: self._balanced() and len(self._live()) == 2, "everybody is up")
        learner, before = self.run.processes["learner"], self._step()
        learner.send_signal(signal.SIGSTOP)
        time.sleep(SLEEP_SECONDS)
        waiting: Any = self.run.client.xpending(self.run.keys.tickets("train"), GENERATORS)
        groups = int(self.run.client.xlen(self.run.keys.rollouts("train")))
        self.idle = (int(waiting["pending"]), groups)
        assert groups <= CAPACITY + GROUPS * 2 * 20, f"{groups} groups wait for a learner that sleeps"
        assert waiting["pending"] == 0, "generators have answered all there was, and idle"
        learner.send_signal(signal.SIGCONT)
        self._until(lambda: self._step() > before + 3, "the learner goes on")

    def _look(self, at: float) -> None:
        try:
            assert self._balanced(), self.run.ledger().balance()
            memory: Any = self.run.client.info("memory")
            self._note("redis used_memory", at, memory["used_memory"])
            lengths = [int(self.run.client.xlen(s)) for k in ("train", "eval") for s in self._streams(k)]
        except redis.RedisError:  # just being restarted
            return
        self.longest_streams = max(self.longest_streams, *lengths)
        for name in NAMES:
            process = self.run.processes[name]
            if process.poll() is None and time.monotonic() - self.began[name] > 20:  # once it has warmed up
                self._note(f"{name} RSS", at, _rss(process.pid))

    def _note(self, name: str, at: float, value: float) -> None:
        self.series.setdefault(name, Series()).add(at, value)

    def _streams(self, kind: str) -> tuple[str, str]:
        return self.run.keys.tickets(kind), self.run.keys.rollouts(kind)

    def _balanced(self) -> bool:
        try:
            return all(self.run.ledger(kind).balance().balanced for kind in ("train", "eval"))
        except redis.RedisError:
            return False

    def _live(self) -> list[bytes]:
        found: Any = self.run.client.hgetall(self.run.keys.generators)
        return [name for name, until in found.items() if float(until) > time.time()]

    def _step(self) -> int:
        try:
            return self.run.step()
        except redis.RedisError:
            return -1

    def _until(self, ready: Any, what: str) -> None:
        deadline = time.monotonic() + 90
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(self.run.log(name)[-1500:] for name in NAMES)
                raise AssertionError(f"timed out waiting until {what}\n{logs}")
            self._revive()
            time.sleep(0.1)

    def _report(self, steps: int, seconds: float) -> list[str]:
        lines = [f"{seconds / 60:.1f} minutes, {steps} steps, events: {self.kills or 'none'}"]
        lines.append(f"longest stream: {self.longest_streams} entries")
        lines.append(f"learner asleep for a minute: {self.idle[0]} tickets in hand, {self.idle[1]} groups waiting")
        for name, series in self.series.items():
            mean = float(np.mean(series.values))
            low, high = min(series.values) / 1e6, max(series.values) / 1e6
            slope = f"slope {series.slope / 1e6:+.3f} MB/min ({series.slope / mean:+.2%}/min)"
            lines.append(f"{name}: mean {mean / 1e6:.1f} MB, from {low:.1f} to {high:.1f}, {slope}")
        return lines


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="make soak", description="kill something every few seconds, and look")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gentle", action="store_true", help="kill nothing: how memory behaves in a long quiet run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as folder:
        report = Soak(Path(folder), options.minutes, options.seed, options.gentle).play()
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
