"""One cell of the crash matrix: a run of real processes to which one thing happens, and what must hold afterwards.

A process dies (`KILL`) or falls asleep for longer than any lease (`STOP`) at a labelled point, or Redis does something;
whoever died is started again, as a supervisor would. Nobody else interferes: the run must end by itself.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import torch
from safetensors.torch import load_file

from broker.points import VARIABLE
from tests.faults import Faulty
from tests.system.audit import Audit
from tests.system.pipeline import Pipeline
from tests.system.processes import Forked

STEPS, GROUPS, LEASE, SECONDS = 8, 2, 2.0, 90.0
GENERATORS = ("one", "two")
SHARED = f"""--run.steps {STEPS} --run.seed 3 --learner.groups_per_step {GROUPS} --learner.learning_rate 3e-3
    --learner.threads 1 --generator.threads 1 --sampling.group_size 8 --policy.keep 50 --learner.checkpoint_every 3
    --learner.eval_every 4 --learner.eval_problems 3 --broker.lease_seconds {LEASE} --broker.command_timeout 1
    --broker.patience 60 --learner.tokens_per_micro_batch 1"""
STRICT = "--run.deterministic true --learner.order strict"
MODES = {
    "strict, bound 0": f"{STRICT} --run.max_staleness 0 --learner.pipeline_depth 0",
    "strict, bound 2": f"{STRICT} --run.max_staleness 2 --learner.pipeline_depth 2 --learner.curriculum target",
    "ready, bound 6": "--learner.order ready --run.max_staleness 6 --learner.pipeline_depth 2",
    "strict, weights in Redis": f"""{STRICT} --run.max_staleness 2 --learner.pipeline_depth 2
        --learner.curriculum target --policy.backend redis --policy.dtype bfloat16 --policy.anchor_every 3
        --learner.learning_rate 1e-5""",  # so that what travels are mostly differences
}
BOUNDS = {"strict, bound 0": 0, "strict, bound 2": 2, "ready, bound 6": 6, "strict, weights in Redis": 2}
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Event:
    """What happens: `what` is KILL, STOP, or something that Redis does; `point` is where, `times` how often before."""

    what: str
    point: str
    times: int = 1
    mode: str = "strict, bound 2"
    then: str = ""  # where its successor is killed as well

    @property
    def label(self) -> str:
        return f"{self.what} {self.where}:{self.times} ({self.mode})"

    @property
    def where(self) -> str:
        """In words."""
        return f"{self.point}, then {self.then}" if self.then else self.point

    @property
    def victim(self) -> str:
        """The process it happens to."""
        if self.point.startswith("redis"):
            return "redis"
        return "one" if self.point.startswith("generator") else "learner"


@dataclass
class Outcome:
    """What was seen of a run."""

    seconds: float
    trained: int
    stale: int
    restarts: int
    compared: int
    weights: Weights


class Cell:
    """One run."""

    def __init__(self, folder: Path, model: Path, event: Event | None, mode: str) -> None:
        self.event, self.mode = event, mode
        flags = ["--run.model", str(model), *SHARED.split(), *MODES[mode].split()]
        self.run = Pipeline(folder, flags, server_class=Faulty)
        self.happened, self.restarts, self.woken = event is None, 0, 0.0
        self.remembered = False
        self.then, self.armed = event.then if event is not None else "", ""

    def play(self) -> Outcome:
        """Raises `AssertionError` where something does not hold."""
        started = time.monotonic()
        with self.run:
            audit = Audit(self.run.server.url, self.run.keys)
            for name in ("learner", *GENERATORS):
                self._start(name)
            try:
                while self.run.processes["learner"].poll() != 0:
                    assert time.monotonic() - started < SECONDS, self._story("the run does not end")
                    self._supervise()
                    self._happen()
                    time.sleep(0.02)
                self._see_off()
            finally:
                audit.close()
            assert self.happened, self._story("what should have happened did not")
            assert not self.then, self._story("and then nothing happened")
            assert not self.armed, self._story(f"nobody was killed at {self.armed}")
            outcome = self._verified(time.monotonic() - started)
            outcome.compared = audit.verify(self.run.run_folder / "policy", 1.0)
            return outcome

    def _see_off(self) -> None:
        """Generators leave when the run is over, also one that slept through its end."""
        deadline = time.monotonic() + 30
        for name in GENERATORS:
            while self.run.processes[name].poll() is None:
                assert time.monotonic() < deadline, self._story(f"{name} does not leave")
                self._wake(name)
                time.sleep(0.02)
            assert self.run.processes[name].poll() in (0, -signal.SIGKILL), self._story(f"{name} ended badly")

    def _start(self, name: str, armed: bool = True) -> None:
        environment = {}
        if armed and self.event is not None and self.event.victim == name:
            environment[VARIABLE] = f"{self.event.point}:{self.event.times}:{self.event.what}"
        self.run.start("consumer" if name == "learner" else "producer", name, **environment)

    def _supervise(self) -> None:
        for name, process in list(self.run.processes.items()):
            status = process.poll()
            if status is not None and status != 0:
                expected = self.event is not None and self.event.victim == name and not self.happened
                expected |= bool(self.happened and self.armed and name == "learner")
                assert expected, self._story(f"{name} ended with {status}")
                assert status == -signal.SIGKILL, self._story(f"{name} ended with {status}")
                self.happened = True
                self._again(name)
            elif process.state == "T":
                self._wake(name)

    def _again(self, name: str) -> None:
        self.restarts += 1
        self.armed, self.then = self.then, ""
        if self.armed:
            self.run.start("consumer", name, **{VARIABLE: f"{self.armed}:1:KILL"})
        else:
            self._start(name, armed=False)

    def _wake(self, name: str) -> None:
        process = self.run.processes[name]
        if process.state != "T":
            return
        self.happened = True
        self.woken = self.woken or time.monotonic() + 1.6 * LEASE
        if time.monotonic() > self.woken:
            process.send_signal(signal.SIGCONT)

    def _happen(self) -> None:
        if self.event is None or self.event.victim != "redis" or self.happened:
            return
        server = self.run.server
        assert isinstance(server, Faulty)
        step = self._step()
        # Back behind the checkpoint of step 3 where a rebuild is wanted. Once: later it may hold a step more.
        due = step >= self.event.times - (4 if self.event.then else 1)
        if self.event.what == "FORGET" and due and not self.remembered:
            server.remember()
            self.remembered = True
        if step < self.event.times:
            return
        self.happened = True
        if "learner" in self.event.point:
            self.run.processes["learner"].kill()
        REDIS[self.event.what](server)
        if "learner" in self.event.point:
            self.run.processes["learner"].wait()
            self._again("learner")

    def _step(self) -> int:
        try:
            return self.run.step()
        except redis.RedisError:
            return -1

    def _verified(self, seconds: float) -> Outcome:
        train, evaluation = self.run.ledger().balance(), self.run.ledger("eval").balance()
        assert train.balanced, self._story(str(train))
        assert evaluation.balanced, self._story(str(evaluation))
        assert not train.unsettled | evaluation.unsettled
        assert train.verdicts["trained"] == STEPS * GROUPS, train.verdicts
        assert not train.verdicts.get("failed"), train.verdicts
        lines = [json.loads(line) for line in (self.run.run_folder / "steps.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "step" in line]
        assert sorted({line["step"] for line in steps}) == list(range(1, STEPS + 1))
        assert max(line["staleness_max"] for line in steps) <= BOUNDS[self.mode]
        assert {line["eval"]["label"] for line in lines if "eval" in line} == {"start", "periodic", "end"}
        if self.run.client.hlen(self.run.keys.weights) and self.event is None:
            shipped: Any = self.run.client.hkeys(self.run.keys.weights)
            assert any(name.endswith(b".delta") for name in shipped), "all of them travelled whole"
        weights = load_file(self.run.run_folder / "model" / "model.safetensors")
        return Outcome(seconds, train.verdicts["trained"], train.verdicts.get("stale", 0), self.restarts, 0, weights)

    def _story(self, what: str) -> str:
        logs = "\n".join(f"== {name}\n{self.run.log(name)[-2500:]}" for name in self.run.processes)
        return f"{what}\n{logs}"


def _stall(server: Faulty) -> None:
    server.stall()
    time.sleep(3 * LEASE)  # longer than a command may take, and than a lease: this is the event itself
    server.go_on()


def _restart(server: Faulty) -> None:
    server.crash()
    server.start()


REDIS: dict[str, Callable[[Faulty], Any]] = {
    "RESTART": _restart,
    "STALL": _stall,
    "FORGET": Faulty.forget,
    "LOSE": Faulty.lose_all,
}


def equal(one: Weights, other: Weights) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def play(folder: Path, model: Path, event: Event | None, mode: str, expected: Weights | None) -> Outcome:
    """One cell. In a strict mode the weights must be `expected`, those of a run to which nothing happened."""
    outcome = Cell(folder, model, event, mode).play()
    if expected is not None and mode.startswith("strict"):
        assert equal(outcome.weights, expected), "the weights are not those of an undisturbed run"
        assert outcome.stale == 0
    return outcome


__all__ = ["MODES", "Cell", "Event", "Forked", "Outcome", "equal", "play"]
