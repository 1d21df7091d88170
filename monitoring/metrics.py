"""Every metric of the pipeline, in one file, and the one small server that shows them.

Invariant: base units (seconds, tokens, versions), counters end in `_total`, labels are bounded sets known here or
counts of a recipe. Refuses to know how a figure came about: it is handed in.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from broker.errors import Refused
from broker.ledger import VERDICTS
from broker.schema import RolloutGroup
from monitoring.reading import Reading

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
MOST_LABELS = 64  # tasks and levels that have a series of their own
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
WAITING = (
    "none",
    "model",  # start-up: it is being loaded
    "engine",  # start-up: vLLM takes a minute or more
    "learner",  # start-up: a generator that was there first
    "task card",  # start-up: a learner that was there first
    "batch",
    "ticket",
    "version",
    "no live generator",
    "publish",
    "replay",
    "evaluation",
    "checkpoint",
    "Redis",
)


@dataclass(frozen=True)
class Wait:
    """What a process waits for, since when on its metrics' clock."""

    reason: str
    detail: str
    since: float


class _Role:
    """What both roles have: phases, what they wait for since when, and when they last got anywhere.

    Progress is something done: a step, a group received or published, a ticket claimed, a version taken up, a
    checkpoint made durable; of an idle generator, a look for tickets that Redis answered. A process without any for
    `stall_seconds` (0: never mind) is not healthy, whatever it waits for: somebody has to look, though not every such
    wait (`no live generator`) is cured by a restart.
    """

    role = ""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        stall_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self.stall_seconds, self._clock = stall_seconds, clock
        self.phase_seconds = Counter(
            f"headrace_{self.role}_phase_seconds_total",
            "Seconds spent in each phase.",
            ["phase"],
            registry=self.registry,
        )
        self.waiting_for = Gauge(
            f"headrace_{self.role}_waiting", "1 for what the process waits for now.", ["reason"], registry=self.registry
        )
        self._progress = clock()
        self._wait = Wait("none", "", self._progress)  # replaced whole: other threads read it
        self._without_redis, self._missed_since, self._lock = 0, 0.0, threading.Lock()
        for name, text, seconds in (
            ("waiting_since", "How long the present wait has lasted, 0 without one.", lambda: self.waited),
            ("last_progress", "Time since anything was done.", lambda: self.idle),
        ):
            gauge = Gauge(f"headrace_{self.role}_{name}_seconds", text, registry=self.registry)
            gauge.set_function(seconds)  # at each scrape: a process that hangs sets nothing
        self._show()

    def _show(self) -> None:
        """Make what this role alone shows."""

    def _held_version(self) -> Gauge:
        name = f"headrace_{self.role}_policy_version"
        return Gauge(name, "Policy version that the process holds.", registry=self.registry)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time in the block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phase_seconds.labels(phase=name).inc(time.perf_counter() - started)

    def waiting(self, reason: str, detail: str = "") -> None:
        """Say what the process waits for, one of `WAITING`; `detail` (a ticket) shows in `/healthz` and log alone."""
        before = self._wait
        if (reason, detail) == (before.reason, before.detail):
            return
        self.waiting_for.labels(reason=before.reason).set(0)
        self.waiting_for.labels(reason=reason).set(1)
        self._wait = Wait(reason, detail, self._clock())

    @property
    def wait(self) -> Wait:
        """What it waits for now; a Redis that does not answer comes before any other reason."""
        return Wait("Redis", "", self._missed_since) if self._without_redis else self._wait

    def starting(self, reason: str) -> None:
        """A phase of the start begins, and so the one before it is done."""
        self.progress()
        self.waiting(reason)

    def redis_missed(self, missed: bool) -> None:
        """A thread begins, or ceases, to wait for a Redis that does not answer."""
        with self._lock:
            self._without_redis += 1 if missed else -1
            self.waiting_for.labels(reason="Redis").set(self._without_redis > 0)
            if self._without_redis == 1 and missed:
                self._missed_since = self._clock()

    def progress(self) -> None:
        """Something was done."""
        self._progress = self._clock()

    @property
    def waited(self) -> float:
        """Seconds that the present wait has lasted; 0 without one."""
        wait = self.wait
        return 0.0 if wait.reason == "none" else self._clock() - wait.since

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""
        return self._clock() - self._progress

    @property
    def stalled(self) -> bool:
        """No progress for longer than the recipe allows."""
        return 0.0 < self.stall_seconds <= self.idle

    def health(self) -> dict[str, Any]:
        """For `/healthz`."""
        wait = self.wait
        since = round(self._clock() - wait.since, 1)
        return {
            "role": self.role,
            "healthy": not self.stalled,
            "waiting": {"reason": wait.reason, "detail": wait.detail, "since_seconds": since},
            "last_progress_seconds": round(self.idle, 1),
        }


class GeneratorMetrics(_Role):
    """What a generator shows."""

    role = "generator"

    def _show(self) -> None:
        r = self.registry
        self.policy_version = self._held_version()
        self.tokens = Counter("headrace_generator_tokens_total", "Completion tokens published.", ["kind"], registry=r)
        self.groups = Counter("headrace_generator_groups_total", "Rollout groups published.", ["kind"], registry=r)
        self.failed = Counter("headrace_generator_failed_groups_total", "Groups published as failed.", registry=r)
        self.tickets = Counter(
            "headrace_generator_tickets_total",
            "Tickets claimed, published, late, lost, handed_back.",
            ["event"],
            registry=r,
        )
        self.reward = Counter(
            "headrace_generator_reward_total", "Sum of the rewards of published train rollouts.", registry=r
        )
        self.rollouts = Counter("headrace_generator_rollouts_total", "Published train rollouts.", registry=r)
        self.components = Counter(
            "headrace_generator_reward_component_total",
            "Sum of each component of the reward.",
            ["component"],
            registry=r,
        )
        self.length = Histogram(
            "headrace_generator_completion_length_tokens", "Tokens in a completion.", buckets=LENGTHS, registry=r
        )
        self.truncated = Counter("headrace_generator_truncated_total", "Completions cut off by max_tokens.", registry=r)
        self.in_flight_groups = Gauge("headrace_generator_in_flight_groups", "Tickets in hand.", registry=r)
        self.slots = Gauge("headrace_generator_slots", "Groups the engine runs at once.", registry=r)
        self.refresh_seconds = Histogram(
            "headrace_generator_refresh_seconds",
            "From a new version's notice to serving it.",
            buckets=SECONDS,
            registry=r,
        )
        self.refresh_failures = Counter(
            "headrace_generator_refresh_failures_total", "Versions that could not be taken up.", registry=r
        )

    def observe_group(self, group: RolloutGroup) -> None:
        """A group was published."""
        self.progress()
        self.groups.labels(kind=group.kind).inc()
        if group.failed:
            self.failed.inc()
        self.tokens.labels(kind=group.kind).inc(group.completion_tokens)
        for rollout in group.rollouts:
            self.length.observe(len(rollout.tokens))
            self.truncated.inc(rollout.truncated)
            if group.kind == "train":
                self.rollouts.inc()
                self.reward.inc(max(0.0, rollout.reward))
                for name, value in rollout.components.items():
                    self.components.labels(component=name).inc(max(0.0, value))


class CountedHistogram(Collector):
    """A histogram that takes many equal observations at once: a step brings its tokens by the million."""

    def __init__(self, name: str, text: str, buckets: tuple[int, ...]) -> None:
        self._name, self._text, self._buckets = name, text, buckets
        self._counts: Counts[float] = Counts()

    def add(self, value: float, count: int) -> None:
        """`count` observations of `value`."""
        self._counts[value] += count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        counts = dict(self._counts)
        bounds = [*self._buckets, math.inf]
        buckets = [
            (floatToGoString(b), float(sum(n for value, n in counts.items() if value <= b)))  # type: ignore[no-untyped-call]
            for b in bounds
        ]
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, sum(value * n for value, n in counts.items()))
        yield family


class LearnerMetrics(_Role):
    """What the learner shows."""

    role = "learner"
    GAUGES: Mapping[str, str] = {
        "reward": "Mean reward over all groups consumed since the step before.",
        "loss": "Loss of the last step.",
        "grad_norm": "Norm of the gradient before clipping.",
        "learning_rate": "Learning rate of the last step.",
        "entropy": "Mean entropy of the policy at the tokens trained on, nats.",
        "advantage_std": "Standard deviation of the advantages of the tokens trained on.",
        "ess": "Effective sample size of the tokens' ratios π/μ at the start of the batch, as a fraction.",
        "sequence_ess": "The same of whole sequences' ratios.",
        "ratio_mean": "Mean importance ratio π/μ.",
        "ratio_max": "Largest importance ratio π/μ.",
        "ratio_p01": "1st percentile of the importance ratio π/μ.",
        "ratio_p50": "Median importance ratio π/μ.",
        "ratio_p99": "99th percentile of the importance ratio π/μ.",
        "kl": "Estimate (k3) of KL(μ‖π), nats a token.",
        "kl_k1": "Estimate (k1) of KL(μ‖π), nats a token.",
        "kl_reference": "Estimate (k3) of KL(π‖π_ref) to the reference model, nats a token; NaN without one.",
        "clip_fraction": "Tokens whose gradient the surrogate's clip or mask removed.",
        "clip_fraction_positive": "The same of tokens with a positive advantage.",
        "clip_fraction_negative": "The same of tokens with a negative advantage.",
        "truncation_fraction": "Tokens whose weight was held at its cap: π_prox/μ, or cispo's and topr's own.",
        "truncation_fraction_positive": "The same of tokens with a positive advantage.",
        "truncation_fraction_negative": "The same of tokens with a negative advantage.",
        "mask_fraction": "Tokens whose weight the correction's masks set to 0.",
        "mask_fraction_positive": "The same of tokens with a positive advantage.",
        "mask_fraction_negative": "The same of tokens with a negative advantage.",
        "mismatch_engine": "KL(μ‖π) (k3) of tokens of this very version: the engine's numerics; NaN without any.",
        "mismatch_staleness": "KL(μ‖π) (k3) of stale tokens beyond mismatch_engine; NaN where that is unknown.",
        "staleness_mean": "Mean staleness of the tokens trained on, in versions.",
        "buffer": "Groups arrived and waiting for a batch.",
        "completion_length": "Mean tokens in a completion.",
        "truncated_fraction": "Completions cut off by max_tokens.",
    }

    def _show(self) -> None:
        r = self.registry
        self.policy_version = self._held_version()
        self.gauges = {name: Gauge(f"headrace_learner_{name}", text, registry=r) for name, text in self.GAUGES.items()}
        self.mismatch = Gauge(
            "headrace_learner_mismatch",
            "KL(μ‖π) (k3) at the start of the batch of the tokens of each staleness, nats a token.",
            ["staleness"],
            registry=r,
        )
        self.step = Gauge("headrace_learner_step", "Optimizer steps done.", registry=r)
        self.steps = Counter("headrace_learner_steps_total", "Optimizer steps of this process.", registry=r)
        self.skipped = Counter(
            "headrace_learner_skipped_updates_total",
            "Updates thrown away for a gradient that is not finite.",
            registry=r,
        )
        self.out_of_range = Gauge(
            "headrace_learner_out_of_range_steps",
            "Steps in a row whose ess or gradient norm the collapse guard takes exception to.",
            registry=r,
        )
        self.tokens = Counter("headrace_learner_tokens_total", "Completion tokens trained on.", registry=r)
        self.verdicts = Counter("headrace_learner_groups_total", "Groups by verdict.", ["verdict"], registry=r)
        self.staleness = CountedHistogram(
            "headrace_learner_staleness_versions", "Staleness of tokens trained on.", tuple(range(17))
        )
        r.register(self.staleness)
        self.step_seconds = Histogram(
            "headrace_learner_step_seconds", "Time from step to step.", buckets=SECONDS, registry=r
        )
        self.last_step = Gauge(
            "headrace_learner_last_step_timestamp_seconds", "When the last step was done.", registry=r
        )
        self.checkpoint_step = Gauge("headrace_learner_checkpoint_step", "Step of the newest checkpoint.", registry=r)
        self.checkpoint_seconds = Histogram(
            "headrace_learner_checkpoint_seconds", "Time to write a checkpoint.", buckets=SECONDS, registry=r
        )
        self.checkpoint_failures = Counter(
            "headrace_learner_checkpoint_failures_total", "Checkpoints for which the disk had no room.", registry=r
        )
        self.publication_failures = Counter(
            "headrace_learner_publication_failures_total",
            "Uploads of weights for which the disk had no room.",
            registry=r,
        )
        self.rebuilds = Counter(
            "headrace_learner_rebuilds_total", "Times the books were made anew from a checkpoint.", registry=r
        )
        self.pass_at_1 = Gauge("headrace_learner_eval_pass_at_1", "Held-out pass@1 of the last evaluation.", registry=r)
        self.pass_at = Gauge(
            "headrace_learner_eval_pass_at", "Held-out pass@k of the last evaluation.", ["k"], registry=r
        )
        self.majority_at = Gauge(
            "headrace_learner_eval_majority_at", "How often most of k held-out answers are right.", ["k"], registry=r
        )
        self.pass_by = Gauge(
            "headrace_learner_eval_by_pass_at_1",
            "Held-out pass@1 of the last evaluation, by task and level.",
            ["task", "level"],
            registry=r,
        )

        self.epochs = Gauge(
            "headrace_learner_curriculum_epochs", "Epochs walked of each part of the task.", ["part"], registry=r
        )
        self.problems = Gauge(
            "headrace_learner_curriculum_problems",
            "Problems by how their latest groups did: never, sometimes, always solved; of a curriculum that looks.",
            ["state"],
            registry=r,
        )

    def observe_step(self, record: Mapping[str, Any]) -> None:
        """A step was done; `record` is its line in steps.jsonl."""
        self.progress()
        for name, gauge in self.gauges.items():
            gauge.set(math.nan if record[name] is None else record[name])
        self.mismatch.clear()
        for age, kl in record["mismatch_by_staleness"].items():
            self.mismatch.labels(staleness=str(age)).set(kl)
        for gauge, figures in ((self.epochs, "epochs"), (self.problems, "problems")):
            for label, value in list(record["curriculum"][figures].items())[:MOST_LABELS]:
                gauge.labels(label).set(value)
        self.step.set(record["step"])
        self.steps.inc()
        self.skipped.inc(record["skipped"])
        self.tokens.inc(record["tokens"])
        for age, count in record["staleness_histogram"].items():
            self.staleness.add(int(age), int(count))
        self.step_seconds.observe(record["seconds"])
        self.last_step.set(record["time"])
        self.policy_version.set(record["policy_version"])

    def observe_evaluation(self, record: Mapping[str, Any]) -> None:
        """An evaluation is complete."""
        self.progress()
        if record["pass_at_1"] is not None:
            self.pass_at_1.set(record["pass_at_1"])
            for gauge, figures in ((self.pass_at, record["pass_at"]), (self.majority_at, record["majority_at"])):
                for k, value in figures.items():
                    gauge.labels(k=k).set(value)
        for of in record["by"][:MOST_LABELS]:
            self.pass_by.labels(task=of["task"], level=of["level"]).set(of["pass_at_1"])


class Books(Collector):
    """The exporter's last reading of Redis, whole. Figures of a Redis that is away are absent rather than old."""

    def __init__(self) -> None:
        self.reading: Reading | None = None  # replaced whole: the server's threads read it

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        reading = self.reading
        yield _gauge("redis_up", "1 if Redis answered when it was last asked.", [], {(): reading is not None})
        if reading is not None:
            yield from self._ledger(reading)
            yield from self._streams(reading)
            yield from self._redis(reading)

    @staticmethod
    def _ledger(reading: Reading) -> Iterator[Metric]:
        by_kind = {(kind,): balance for kind, balance in reading.balances.items()}
        yield _gauge(
            "ledger_balanced",
            "1 if issued = verdicts + outstanding, and outstanding is as a set of ids what the streams hold.",
            ["kind"],
            {key: balance.balanced for key, balance in by_kind.items()},
        )
        yield _gauge(
            "ledger_astray_tickets",
            "Tickets outstanding and nowhere, or somewhere and settled.",
            ["kind"],
            {key: len(balance.astray) for key, balance in by_kind.items()},
        )
        yield _counter(
            "ledger_issued_tickets", "Tickets issued.", ["kind"], {k: balance.issued for k, balance in by_kind.items()}
        )
        yield _counter(
            "ledger_settled_tickets",
            "Tickets by final verdict.",
            ["kind", "verdict"],
            {(*k, v): balance.verdicts.get(v, 0) for k, balance in by_kind.items() for v in VERDICTS},
        )
        yield _gauge(
            "ledger_outstanding_tickets",
            "Tickets without a final verdict, as the books have them.",
            ["kind"],
            {key: len(balance.unsettled) for key, balance in by_kind.items()},
        )
        yield _gauge(
            "ledger_located_tickets",
            "Tickets found: waiting for a generator, claimed by one, published to the learner.",
            ["kind", "place"],
            {
                (*key, place): len(found)
                for key, b in by_kind.items()
                for place, found in (("waiting", b.waiting), ("claimed", b.claimed), ("published", b.published))
            },
        )
        yield _gauge(
            "ledger_oldest_outstanding_seconds",
            "Since the oldest outstanding ticket was issued, 0 without one.",
            ["kind"],
            {(kind,): age for kind, age in reading.ages.items()},
        )

    @staticmethod
    def _streams(reading: Reading) -> Iterator[Metric]:
        labels, streams = ["stream", "kind"], reading.streams.items()
        yield _gauge("stream_entries", "Entries of a stream.", labels, {key: s.entries for key, s in streams})
        yield _gauge(
            "stream_pending_entries",
            "Entries claimed by somebody and not settled.",
            labels,
            {key: s.pending for key, s in streams},
        )
        yield _gauge("dead_letters", "What failed or could not be read, and is kept.", [], {(): reading.dead_letters})
        yield _counter(
            "dead_letters_dropped",
            "Dead letters that gave way to newer ones.",
            [],
            {(): reading.dead_letters_dropped},
        )
        yield _gauge("requeued_tickets", "Dead letters that wait to be issued again.", [], {(): reading.requests})
        yield _counter(
            "late_groups", "Groups published after another generator's, and dropped.", [], {(): reading.late}
        )

    @staticmethod
    def _redis(reading: Reading) -> Iterator[Metric]:
        pointer: Values = {} if reading.policy_version is None else {(): reading.policy_version}
        yield _gauge("policy_version", "Newest published policy version: the pointer's.", [], pointer)
        yield _gauge("live_generators", "Generators that were heard of lately.", [], {(): reading.live_generators})
        yield _gauge("redis_used_memory_bytes", "Memory that Redis uses.", [], {(): reading.used_memory})
        yield _gauge(
            "redis_maxmemory_bytes", "Memory that Redis may use, 0 without a limit.", [], {(): reading.maxmemory}
        )


Values = Mapping[tuple[str, ...], float]


def _gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    return _filled(GaugeMetricFamily(f"headrace_{name}", text, labels=labels), values)


def _counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    """Counted in Redis, not here: `_total` is added to the name."""
    return _filled(CounterMetricFamily(f"headrace_{name}", text, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


class ExporterMetrics(_Role):
    """What the exporter shows: the books of a run and its Redis, beside what it says of itself."""

    role = "exporter"

    def _show(self) -> None:
        self.books = Books()
        self.registry.register(self.books)

    def observe(self, reading: Reading | None) -> None:
        """Redis was asked, and this is what it said; None: nothing. To have asked is progress either way."""
        self.progress()
        self.books.reading = reading
        self.waiting("none" if reading is not None else "Redis")

    def health(self) -> dict[str, Any]:
        """For `/healthz`."""
        reading = self.books.reading
        balanced = {} if reading is None else {kind: b.balanced for kind, b in reading.balances.items()}
        return {**super().health(), "redis_up": reading is not None, "balanced": balanced}


class Exposed(Protocol):
    """What the server needs."""

    registry: CollectorRegistry


class Server:
    """`/metrics` and `/healthz` on a thread of its own; `port` is the bound one, 0 when the endpoint is off.

    `/healthz` answers 503, with the same body, where `health` says `"healthy": false`.
    """

    def __init__(self, metrics: Exposed, host: str, port: int, health: Callable[[], dict[str, Any]]) -> None:
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        if port == 0:
            return

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name is the base class's
                if self.path == "/metrics":
                    self._answer(CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
                elif self.path == "/healthz":
                    state = health()
                    status = 200 if state.get("healthy", True) else 503
                    self._answer("application/json", json.dumps(state).encode(), status)
                else:
                    self.send_error(404)

            def _answer(self, kind: str, body: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a log line."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise Refused(
                f"cannot serve metrics on {host}:{port}: {error.strerror}",
                "free that port, or set [monitoring] ports (0 is off)",
            ) from None
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def serve(metrics: Exposed, host: str, port: int, health: Callable[[], dict[str, Any]]) -> Server:
    """Start the endpoint. Raises `Refused` when the port cannot be had."""
    return Server(metrics, host, port, health)
