"""Every metric of the pipeline, in one file.

Invariant: base units (seconds, tokens, versions), counters end in `_total`, labels are bounded sets known here or
counts of a recipe. Refuses to know how a figure came about: it is handed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from broker.ledger import VERDICTS, Balance
from broker.schema import KINDS, RolloutGroup
from monitoring.reading import Reading, Stream
from monitoring.register import Derived, Described, Kind, Register, Values
from monitoring.standing import WAITING, Standing

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
MOST_LABELS = 64  # tasks, levels and components that have a series of their own
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
TICKET_EVENTS = ("claimed", "published", "late", "lost", "handed_back", "failed")


class _Role(Standing):
    """What all roles have: phases, what they wait for since when, when they last got anywhere, memory."""

    phases: tuple[str, ...] = ()

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        stall_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stall_seconds=stall_seconds, clock=clock)
        self._register = Register(registry)
        self.phase_seconds = self._register.counter(
            f"headrace_{self.role}_phase_seconds_total",
            "Seconds spent in each phase; those of several tickets in hand add up.",
            "phase",
        )
        self.waiting_for = self._register.gauge(
            f"headrace_{self.role}_waiting", "1 for what the process waits for now.", "reason"
        )
        for name, text, seconds in (
            ("waiting_since", "How long the present wait has lasted, 0 without one.", lambda: self.waited),
            ("last_progress", "Time since anything was done.", lambda: self.idle),
        ):
            gauge = self._register.gauge(f"headrace_{self.role}_{name}_seconds", text)
            gauge.set_function(seconds)  # at each scrape: a process that hangs sets nothing
        self._register.process(f"headrace_{self.role}")
        # Every series is there from the start: the first event is a growth from 0, not a beginning at 1.
        self._phases = {name: self.phase_seconds.labels(phase=name) for name in self.phases}
        self._waits = {reason: self.waiting_for.labels(reason=reason) for reason in WAITING}
        self._show(self._register)

    def _show(self, r: Register) -> None:
        """Make what this role alone shows."""

    @property
    def registry(self) -> CollectorRegistry:
        """What a server shows."""
        return self._register.registry

    @property
    def described(self) -> Sequence[Described]:
        """Every metric of this role."""
        return self._register.described

    def _show_wait(self, reason: str, *, waits: bool) -> None:
        self._waits[reason].set(waits)

    def _held_version(self, r: Register) -> Gauge:
        return r.gauge(f"headrace_{self.role}_policy_version", "Policy version that the process holds.")

    def _audit_lost(self, r: Register) -> Counter:
        name = f"headrace_{self.role}_audit_lost_notes_total"
        return r.counter(name, "Notes that the audit log has lost: `make explain` lacks them.")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time in the block to one of `phases`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spend(name, time.perf_counter() - started)

    def _spend(self, phase: str, seconds: float) -> None:
        self._phases[phase].inc(seconds)


class GeneratorMetrics(_Role):
    """What a generator shows."""

    role = "generator"
    phases = ("wait_slot", "wait_ticket", "wait_version", "sample", "verify", "publish", "refresh")

    def _show(self, r: Register) -> None:
        self.policy_version, self.audit_lost = self._held_version(r), self._audit_lost(r)
        self.in_phase = r.gauge("headrace_generator_in_phase", "How often each phase is under way now.", "phase")
        self._inside = {name: self.in_phase.labels(phase=name) for name in self.phases}
        self.tokens = r.counter("headrace_generator_tokens_total", "Completion tokens published.", "kind")
        self.groups = r.counter("headrace_generator_groups_total", "Rollout groups published.", "kind")
        self.failed = r.counter("headrace_generator_failed_groups_total", "Groups published as failed.")
        self.tickets = r.counter(
            "headrace_generator_tickets_total",
            f"Tickets {', '.join(TICKET_EVENTS)}.",
            "event",
        )
        self.reward = r.counter(
            "headrace_generator_reward_total", "Sum of the positive rewards of published train rollouts."
        )
        self.penalty = r.counter(
            "headrace_generator_penalty_total",
            "Sum of their negative rewards, as a positive number: a counter cannot take anything back.",
        )
        self.rollouts = r.counter("headrace_generator_rollouts_total", "Published train rollouts.")
        self.components = r.counter(
            "headrace_generator_reward_component_total",
            "Sum of each component of the reward, where it is positive; the component `other` is of names beyond the "
            f"first {MOST_LABELS}.",
            "component",
        )
        self.penalties = r.counter(
            "headrace_generator_penalty_component_total",
            "Sum of each component where it is negative, as a positive number.",
            "component",
        )
        self.length = r.histogram(
            "headrace_generator_completion_length_tokens", "Tokens in a completion.", buckets=LENGTHS
        )
        self.truncated = r.counter("headrace_generator_truncated_total", "Completions cut off by max_tokens.")
        self.in_flight_groups = r.gauge("headrace_generator_in_flight_groups", "Slots in use.")
        self.slots = r.gauge("headrace_generator_slots", "Groups the engine runs at once.")
        self.refresh_seconds = r.histogram(
            "headrace_generator_refresh_seconds", "From a new version's notice to serving it.", buckets=SECONDS
        )
        self.pause_seconds = r.histogram(
            "headrace_generator_pause_seconds", "How long a refresh kept the engine from sampling.", buckets=SECONDS
        )
        self.refresh_failures = r.counter(
            "headrace_generator_refresh_failures_total", "Versions that could not be taken up."
        )
        self.engine_restarts = r.counter(
            "headrace_generator_engine_restarts_total", "Starts of an engine that had died or hung."
        )
        for kind in KINDS:
            self.tokens.labels(kind=kind)
            self.groups.labels(kind=kind)
        for event in TICKET_EVENTS:
            self.tickets.labels(event=event)
        self._components: set[str] = set()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time in the block to one of `phases`, and that it is under way."""
        with self._inside[name].track_inprogress(), super().phase(name):
            yield

    def show_vllm(self) -> None:
        """Show beside ours what vLLM counts by itself: queue, key-value cache, latencies (`vllm:…`)."""
        self._register.lodge("vllm:")

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
            self._observe_rewards(group)

    def _observe_rewards(self, group: RolloutGroup) -> None:
        """Sums first: a metric is told once a group, not once a rollout."""
        self.rollouts.inc(len(group.rollouts))
        rewards = [rollout.reward for rollout in group.rollouts]
        self.reward.inc(sum(r for r in rewards if r > 0))
        self.penalty.inc(-sum(r for r in rewards if r < 0))
        sums: dict[tuple[str, bool], float] = {}
        for rollout in group.rollouts:
            for name, value in rollout.components.items():
                sums[name, value < 0] = sums.get((name, value < 0), 0.0) + value
        for (name, negative), value in sums.items():
            (self.penalties if negative else self.components).labels(component=self._bounded(name)).inc(abs(value))

    def _bounded(self, component: str) -> str:
        if len(self._components) < MOST_LABELS:
            self._components.add(component)
        return component if component in self._components else "other"


class LearnerMetrics(_Role):
    """What the learner shows."""

    role = "learner"
    phases = (
        "claim",
        "wait",
        "pack",
        "forward_backward",
        "optimizer",
        "figures",
        "publish",
        "checkpoint",
        "evaluate",
    )
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
        "staleness_max": "Largest staleness of a token of the last step, in versions.",
        "buffer": "Groups arrived and waiting for a batch.",
        "completion_length": "Mean tokens in a completion.",
        "truncated_fraction": "Completions cut off by max_tokens.",
        "mfu": "Model FLOPs of the last step over what the devices could have done in its training time; NaN where "
        "their peak is not known.",
        "peak_flops": "What all devices can do a second, dense bfloat16; NaN where that is not known.",
    }

    def _show(self, r: Register) -> None:
        self.policy_version, self.audit_lost = self._held_version(r), self._audit_lost(r)
        self.gauges = {name: r.gauge(f"headrace_learner_{name}", text) for name, text in self.GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set(math.nan)  # 0 would be said of steps that nobody has taken
        self.buffer = self.gauges["buffer"]
        self.buffer.set(0)
        self.mismatch = r.gauge(
            "headrace_learner_mismatch",
            "KL(μ‖π) (k3) at the start of the batch of the tokens of each staleness, nats a token.",
            "staleness",
        )
        self.step = r.gauge("headrace_learner_step", "Optimizer steps done.")
        self.steps = r.counter("headrace_learner_steps_total", "Optimizer steps of this process.")
        self.skipped = r.counter(
            "headrace_learner_skipped_updates_total", "Updates thrown away for a gradient that is not finite."
        )
        self.out_of_range = r.gauge(
            "headrace_learner_out_of_range_steps",
            "Steps in a row whose ess or gradient norm the collapse guard takes exception to.",
        )
        self.tokens = r.counter("headrace_learner_tokens_total", "Completion tokens trained on.")
        self.flops = r.counter(
            "headrace_learner_flops_total",
            "Model FLOPs of training: 6 a weight and token, prompts included, 2 for each further forward pass.",
        )
        self.verdicts = r.counter("headrace_learner_groups_total", "Groups by verdict.", "verdict")
        self.staleness = r.counted(
            "headrace_learner_staleness_versions", "Staleness of tokens trained on.", tuple(range(17))
        )
        self.completions = r.counter(
            "headrace_learner_completions_total",
            "Completions trained on, by their tokens: up to the power of two that `length` names.",
            "length",
        )
        self.completions_staleness = r.counter(
            "headrace_learner_completions_staleness_versions_total",
            "Sum over completions trained on of the staleness of their oldest token, by length.",
            "length",
        )
        self.step_seconds = r.histogram("headrace_learner_step_seconds", "Time from step to step.", buckets=SECONDS)
        self.last_step = r.gauge("headrace_learner_last_step_timestamp_seconds", "When the last step was done.")
        self.publication_seconds = r.histogram(
            "headrace_learner_publication_seconds",
            "Upload and commit of a policy version, beside the training.",
            buckets=SECONDS,
        )
        self.publication_failures = r.counter(
            "headrace_learner_publication_failures_total", "Uploads of weights for which the disk had no room."
        )
        self.checkpoint_step = r.gauge("headrace_learner_checkpoint_step", "Step of the newest checkpoint.")
        self.checkpoint_seconds = r.histogram(
            "headrace_learner_checkpoint_seconds", "Time to write a checkpoint.", buckets=SECONDS
        )
        self.checkpoint_failures = r.counter(
            "headrace_learner_checkpoint_failures_total", "Checkpoints for which the disk had no room."
        )
        self.rebuilds = r.counter(
            "headrace_learner_rebuilds_total", "Times the books were made anew from a checkpoint."
        )
        self.pass_at_1 = r.gauge("headrace_learner_eval_pass_at_1", "Held-out pass@1 of the last evaluation.")
        self.pass_at_1.set(math.nan)
        self.pass_at = r.gauge("headrace_learner_eval_pass_at", "Held-out pass@k of the last evaluation.", "k")
        self.majority_at = r.gauge(
            "headrace_learner_eval_majority_at", "How often most of k held-out answers are right.", "k"
        )
        self.pass_by = r.gauge(
            "headrace_learner_eval_by_pass_at_1",
            "Held-out pass@1 of the last evaluation, by task and level.",
            "task",
            "level",
        )
        self.epochs = r.gauge("headrace_learner_curriculum_epochs", "Epochs walked of each part of the task.", "part")
        self.problems = r.gauge(
            "headrace_learner_curriculum_problems",
            "Problems by how their latest groups did: never, sometimes, always solved; of a curriculum that looks.",
            "state",
        )
        self.settings = r.gauge(
            "headrace_learner_setting", "Numbers of the recipe that alerts and dashboards compare with.", "name"
        )
        for verdict in VERDICTS:
            if verdict != "evaluated":  # no verdict on a train group
                self.verdicts.labels(verdict=verdict)
        self._lap: dict[str, float] = {}

    def lap(self) -> dict[str, float]:
        """Seconds spent in each phase, those of `observe_step` aside, since this was last asked; those above 0."""
        lap, self._lap = self._lap, {}
        return lap

    def _spend(self, phase: str, seconds: float) -> None:
        super()._spend(phase, seconds)
        self._lap[phase] = self._lap.get(phase, 0.0) + seconds

    def observe_settings(self, settings: Mapping[str, float]) -> None:
        """What the recipe says."""
        for name, value in settings.items():
            self.settings.labels(name=name).set(value)

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
        for name, seconds in record["phase_seconds"].items():
            self._phases[name].inc(seconds)
        self.step.set(record["step"])
        self.steps.inc()
        self.skipped.inc(record["skipped"])
        self.tokens.inc(record["tokens"])
        self.flops.inc(record["flops"])
        for age, count in record["staleness_histogram"].items():
            self.staleness.add(int(age), int(count))
        for length, count in record["completions_by_length"].items():
            self.completions.labels(length=str(length)).inc(count)
            self.completions_staleness.labels(length=str(length)).inc(count * record["staleness_by_length"][length])
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


def _of(
    name: str, kind: Kind, labels: Sequence[str], text: str, values: Callable[[Reading], Values]
) -> Derived[Reading]:
    return Derived(Described(f"headrace_{name}", kind, tuple(labels), text), values)


def _by_kind(name: str, kind: Kind, text: str, value: Callable[[Balance], float]) -> Derived[Reading]:
    """A figure of the books of each kind; `value` is asked of its `Balance`."""
    return _of(name, kind, ["kind"], text, lambda r: {(key,): value(b) for key, b in r.balances.items()})


def _by_stream(name: str, text: str, value: Callable[[Stream], float]) -> Derived[Reading]:
    """A figure of each stream; `value` is asked of its `Stream`."""
    return _of(name, "gauge", ["stream", "kind"], text, lambda r: {key: value(s) for key, s in r.streams.items()})


def _alone(name: str, kind: Kind, text: str, value: Callable[[Reading], float | None]) -> Derived[Reading]:
    """One figure; None is absent."""

    def values(reading: Reading) -> Values:
        found = value(reading)
        return {} if found is None else {(): found}

    return _of(name, kind, [], text, values)


# What the exporter reads from Redis.
BOOKS: Sequence[Derived[Reading]] = (
    _by_kind(
        "ledger_balanced",
        "gauge",
        "1 if issued = verdicts + outstanding, and outstanding is as a set of ids what the streams hold.",
        lambda balance: balance.balanced,
    ),
    _by_kind(
        "ledger_astray_tickets",
        "gauge",
        "Tickets outstanding and nowhere, or somewhere and settled.",
        lambda balance: len(balance.astray),
    ),
    _by_kind("ledger_issued_tickets_total", "counter", "Tickets issued.", lambda balance: balance.issued),
    _of(
        "ledger_settled_tickets_total",
        "counter",
        ["kind", "verdict"],
        "Tickets by final verdict.",
        lambda r: {(k, v): b.verdicts.get(v, 0) for k, b in r.balances.items() for v in VERDICTS},
    ),
    _by_kind(
        "ledger_outstanding_tickets",
        "gauge",
        "Tickets without a final verdict, as the books have them.",
        lambda balance: len(balance.unsettled),
    ),
    _of(
        "ledger_located_tickets",
        "gauge",
        ["kind", "place"],
        "Tickets found: waiting for a generator, claimed by one, published to the learner.",
        lambda r: {
            (kind, place): len(found)
            for kind, b in r.balances.items()
            for place, found in (("waiting", b.waiting), ("claimed", b.claimed), ("published", b.published))
        },
    ),
    _of(
        "ledger_oldest_outstanding_seconds",
        "gauge",
        ["kind"],
        "Since the oldest outstanding ticket was issued, 0 without one.",
        lambda r: {(kind,): age for kind, age in r.ages.items()},
    ),
    _by_stream("stream_entries", "Entries of a stream.", lambda stream: stream.entries),
    _by_stream("stream_pending_entries", "Entries claimed by somebody and not settled.", lambda s: s.pending),
    _by_stream("stream_oldest_entry_seconds", "Age of a stream's oldest entry, 0 without one.", lambda s: s.oldest),
    _alone("dead_letters", "gauge", "What failed or could not be read, and is kept.", lambda r: r.dead_letters),
    _alone(
        "dead_letters_dropped_total",
        "counter",
        "Dead letters that gave way to newer ones.",
        lambda r: r.dead_letters_dropped,
    ),
    _alone("requeued_tickets", "gauge", "Dead letters that wait to be issued again.", lambda r: r.requests),
    _alone(
        "late_groups_total", "counter", "Groups published after another generator's, and dropped.", lambda r: r.late
    ),
    _alone("policy_version", "gauge", "Newest published policy version: the pointer's.", lambda r: r.policy_version),
    _alone("live_generators", "gauge", "Generators that were heard of lately.", lambda r: r.live_generators),
    _alone("run_finished", "gauge", "1 once the learner has said that the run is over.", lambda r: r.finished),
    _alone("redis_used_memory_bytes", "gauge", "Memory that Redis uses.", lambda r: r.used_memory),
    _alone("redis_maxmemory_bytes", "gauge", "Memory that Redis may use, 0 without a limit.", lambda r: r.maxmemory),
)


class ExporterMetrics(_Role):
    """What the exporter shows: the books of a run and its Redis, beside what it says of itself.

    Figures of a Redis that is away are absent rather than old.
    """

    role = "exporter"
    phases = ("read",)

    def _show(self, r: Register) -> None:
        self.reading: Reading | None = None  # replaced whole: the server's threads read it
        self.redis_up = r.gauge("headrace_redis_up", "1 if Redis answered when it was last asked.")
        r.snapshot(BOOKS, lambda: self.reading)

    def observe(self, reading: Reading | None) -> None:
        """Redis was asked, and this is what it said; None: nothing. To have asked is progress either way."""
        self.progress()
        self.reading = reading
        self.redis_up.set(reading is not None)
        self.waiting("none" if reading is not None else "Redis")

    def health(self) -> dict[str, Any]:
        """For `/healthz`."""
        reading = self.reading
        balanced = {} if reading is None else {kind: b.balanced for kind, b in reading.balances.items()}
        return {**super().health(), "redis_up": reading is not None, "balanced": balanced}
