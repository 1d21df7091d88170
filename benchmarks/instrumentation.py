"""`make bench-instrumentation`: what the metrics cost, in microseconds a step and a group, beside what those take.

What a learner and a generator tell their metrics in one step and for one group is told to production's own objects,
many times over; what a step and a group take is asked of a real run of the recipe. Invariant: every call that the code
makes for a step or a group is made here, in the same number. Refuses to know whether the figures are right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import generate_latest

from broker.schema import Rollout, RolloutGroup, VersionSpan
from consumer.figures import StepStats
from consumer.record import StepTally
from deploy.recipe import read
from monitoring.endpoints import Answer, ask
from monitoring.metrics import GeneratorMetrics, LearnerMetrics
from tests.ports import free_port

ROUNDS, REPEATS = 7, 200
HOST = "127.0.0.1"
RATES = ("", "_positive", "_negative")


def microseconds(work: Callable[[], object]) -> float:
    """Of one call: the median of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(REPEATS):
            work()
        rounds.append((time.perf_counter() - started) / REPEATS * 1e6)
    return statistics.median(rounds)


def group(size: int, tokens: int) -> RolloutGroup:
    """As a generator publishes it."""
    ids, logprobs = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32)
    made = [
        Rollout(ids, logprobs, (VersionSpan(0, 0, tokens),), n % 2, {"correct": n % 2, "formatted": 1.0})
        for n in range(size)
    ]
    return RolloutGroup("t", "train", 0, np.zeros(3, np.int32), tuple(made))


def stats() -> StepStats:
    """Of a step: figures of every kind, four ages, five lengths."""
    ages, lengths = range(4), [2**n for n in range(5)]
    known: dict[str, Any] = dict.fromkeys(StepStats.__dataclass_fields__, 0.5)
    fractions = {f"{name}_fraction{sign}": 0.1 for name in ("clip", "truncation", "mask") for sign in RATES}
    given: dict[str, Any] = {
        "skipped": False,
        "mismatch_by_staleness": dict.fromkeys(ages, 0.01),
        "staleness_histogram": dict.fromkeys(ages, 100),
        "completions_by_length": dict.fromkeys(lengths, 10),
        "staleness_by_length": dict.fromkeys(lengths, 1.5),
        "phase_seconds": dict.fromkeys(("pack", "forward_backward", "optimizer", "figures"), 0.1),
    }
    return StepStats(**{**known, **fractions, **given})


def of_a_step(folder: Path, groups_per_step: int, size: int, tokens: int) -> float:
    """Microseconds: everything that is told from one step to the next, its line in steps.jsonl included."""
    metrics = LearnerMetrics()
    tally, figures, one = StepTally(folder / "steps.jsonl", 10, metrics), stats(), group(size, tokens)

    def step() -> None:
        for _ in range(groups_per_step):
            metrics.progress()  # a group arrives, and once more at most for each there is a wait
            metrics.waiting("ticket", "t0000000042")
            for phase in ("claim", "wait", "claim"):
                with metrics.phase(phase):
                    pass
            metrics.buffer.set(3)
            tally.consumed(one, "trained")
        metrics.waiting("none")
        tally.waited(0.1)
        for _ in range(2):  # the last publication is waited for, and the weights are copied for the next
            metrics.waiting("publish")
            with metrics.phase("publish"):
                pass
            metrics.waiting("none")
        metrics.publication_seconds.observe(0.1)
        metrics.out_of_range.set(0)
        with metrics.phase("evaluate"):
            pass
        tally.step(
            figures, step=1, version=1, buffer=3, publish_seconds=0.1, curriculum={"epochs": {"": 0.5}, "problems": {}}
        )

    return microseconds(step)


def of_a_group(size: int, tokens: int) -> float:
    """Microseconds: everything that is told of one ticket, from its claim to its group."""
    metrics, one = GeneratorMetrics(), group(size, tokens)

    def serve() -> None:
        metrics.waiting("ticket")
        for phase in ("wait_slot", "wait_ticket", "wait_version", "sample", "verify", "publish", "refresh"):
            with metrics.phase(phase):
                pass
        metrics.progress()
        metrics.tickets.labels(event="claimed").inc()
        metrics.in_flight_groups.set(3)
        metrics.waiting("none")
        metrics.tickets.labels(event="published").inc()
        metrics.observe_group(one)
        metrics.in_flight_groups.set(2)
        metrics.refresh_seconds.observe(0.1)
        metrics.policy_version.set(3)

    return microseconds(serve)


def scrapes() -> dict[str, float]:
    """Milliseconds that an answer to Prometheus takes."""
    roles = {"learner": LearnerMetrics(), "generator": GeneratorMetrics()}
    return {name: microseconds(lambda m=m: generate_latest(m.registry)) / 1e3 for name, m in roles.items()}  # type: ignore[misc]


def of_vllm() -> float | None:
    """Microseconds a token that vLLM's own statistics cost its front end; None without vLLM, or where it has others."""
    try:
        from vllm.v1.metrics.stats import IterationStats, RequestStateStats
    except ImportError:
        return None
    histogram = GeneratorMetrics().refresh_seconds
    request: Any = RequestStateStats()
    output: Any = type("Output", (), {"new_token_ids": [1], "events": None, "num_nans_in_logits": 0})
    stats: Any = IterationStats()

    def token() -> None:
        stats.update_from_output(output, 1.0, False, request, None, None)
        histogram.observe(0.02)  # the time between two tokens is observed for each

    return microseconds(token)


def times(recipe: Path, steps: int) -> tuple[float, float]:
    """Seconds from step to step (median), and from group to group of a generator (mean), in a run of `recipe`."""
    ports = {name: free_port() for name in ("learner", "generator", "exporter")}
    heard: list[Answer] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "deploy.launcher", str(recipe), "--run.directory", folder]
        command += ["--run.steps", str(steps)]
        for name, port in ports.items():
            command += [f"--monitoring.{name}_port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            while run.poll() is None:
                answer = ask(HOST, ports["generator"])
                heard += [answer] if answer is not None and answer.figure("generator_groups_total") else []
                time.sleep(0.2)
        lines = next(Path(folder).glob("*/steps.jsonl")).read_text().splitlines()
    seconds = [line["seconds"] for line in map(json.loads, lines) if "step" in line]
    groups = heard[-1].figure("generator_groups_total") - heard[0].figure("generator_groups_total") if heard else 0
    if len(seconds) < 3 or not groups:
        raise SystemExit(f"the run of {recipe} did not come far enough")
    return statistics.median(seconds[1:]), (heard[-1].at - heard[0].at) / groups


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.instrumentation", description="what the metrics cost")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/tiny.toml"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    of = read(options.recipe)
    size, tokens = of.sampling.group_size, of.sampling.max_tokens
    with tempfile.TemporaryDirectory() as folder:
        step = of_a_step(Path(folder), of.learner.groups_per_step, size, tokens)
    one = of_a_group(size, tokens)
    step_seconds, group_seconds = times(options.recipe, options.steps)
    print(f"{options.recipe}: {of.learner.groups_per_step} groups of {size} a step\n")
    print("| | metrics, µs | takes, ms | share |\n|---|---|---|---|")
    print(f"| a step of the learner | {step:,.0f} | {step_seconds * 1e3:,.1f} | {step / 1e4 / step_seconds:.2f} % |")
    print(f"| a group of a generator | {one:,.0f} | {group_seconds * 1e3:,.1f} | {one / 1e4 / group_seconds:.2f} % |")
    for name, milliseconds in scrapes().items():
        print(f"\nan answer of the {name} to Prometheus: {milliseconds:.1f} ms")
    if (vllm := of_vllm()) is not None:
        print(f"\nvLLM's own statistics (generator.engine_metrics): {vllm:.1f} µs a token")


if __name__ == "__main__":
    main()
