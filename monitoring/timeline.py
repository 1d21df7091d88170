"""Who did what when: the latest steps of a run, as rows of spans for the learner and each lane of each generator.

Invariant: a span lies where a record or a note puts it. What is not on record (how waits and claims alternate within a
step, groups still in hand, the taking up of weights) is not made up, and `notes` says so. Refuses to know pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from monitoring.dossier import Dossier
from monitoring.records import StepRecord
from monitoring.trail import Life

STEPS = 12  # that are shown, or fewer where their groups are more than
GROUPS = 400
LANES = 32  # of all generators together
SLACK = 0.01  # seconds that two groups of one lane may seem to overlap: Redis tells milliseconds
BEFORE = ("figures", "evaluate", "checkpoint", "wait", "claim")  # the order in which the learner goes through a step
UPDATE = ("pack", "forward_backward", "optimizer", "figures")
PHASES = ("wait", "claim", *UPDATE, "publish", "checkpoint", "evaluate", "publication")
SERVING = ("wait for version", "sample", "verify", "hand in")


@dataclass(frozen=True)
class Span:
    """Something that took `seconds` from `begin`, in seconds since the epoch."""

    name: str
    begin: float
    seconds: float

    @property
    def end(self) -> float:
        """When it was over."""
        return self.begin + self.seconds


@dataclass(frozen=True)
class Row:
    """Spans of one process that do not overlap; a generator has a `lane` for each group that it has in hand."""

    process: str
    spans: tuple[Span, ...]
    lane: int = 0


@dataclass(frozen=True)
class Timeline:
    """From `begin` to `end`; `steps`: when each was done; `without`: why there is no generator in it."""

    begin: float
    end: float
    rows: tuple[Row, ...]
    steps: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]
    without: str

    @staticmethod
    def of(run: Dossier) -> Timeline:
        """The latest steps, the first one left out where there are others: engines start in it."""
        served = [life for life in run.trail.lives if life.sampling is not None and life.published_at is not None]
        steps = _latest(run.progress.under_way.records[-STEPS:], served)
        begin = _begin(steps[0]) if steps else min((_claimed(life) for life in served), default=0.0)
        shown = [life for life in served if (life.published_at or 0.0) >= begin]
        ends = [*(r.time for r in steps[-1:]), *(life.published_at or 0.0 for life in shown)]
        lanes = _lanes(shown)
        learner = Row("learner", tuple(span for record in steps for span in of_step(record)))
        publisher = Row("publications", tuple(span for record in steps for span in of_publication(record)))
        rows = [row for row in (learner, publisher) if row.spans]
        return Timeline(
            begin,
            max(ends, default=begin),
            (*rows, *_fair(lanes)),
            tuple((r.step, r.time) for r in steps),
            tuple(_notes(run, bool(served), len(lanes))),
            "" if served else f"Generators: not on record, {run.without or 'no group is in the audit log'}.",
        )


def of_step(record: StepRecord) -> Iterator[Span]:
    """The phases of a step, in the learner's order, up to when it was done; what is in none of them comes first."""
    around = record.loop_seconds or {"wait": max(0.0, record.wait_seconds)}
    parts = [(name, around.get(name, 0.0)) for name in BEFORE]
    parts += [(name, record.phase_seconds.get(name, 0.0)) for name in UPDATE]
    parts.append(("publish", around.get("publish", 0.0)))
    at = record.time - sum(seconds for _, seconds in parts)
    for name, seconds in parts:
        if seconds > 0:
            yield Span(name, at, seconds)
        at += seconds


def of_publication(record: StepRecord) -> Iterator[Span]:
    """The one that this step waited for at its end: begun when the step before was done, on a thread of its own."""
    if record.publish_seconds is not None and record.publish_seconds > 0:
        yield Span("publication", _begin(record), record.publish_seconds)


def of_group(life: Life) -> Iterator[Span]:
    """What a generator did for a group from its claim to its publication."""
    told = life.sampling
    assert told is not None
    sampled = max(0.0, told.sample_seconds - told.wait_seconds)
    rest = told.hand_seconds - told.wait_seconds - sampled - told.verify_seconds
    at = _claimed(life)
    for name, seconds in zip(SERVING, (told.wait_seconds, sampled, told.verify_seconds, rest), strict=True):
        if seconds > 0:
            yield Span(name, at, seconds)
        at += max(0.0, seconds)


def _begin(record: StepRecord) -> float:
    return record.time - max(0.0, record.seconds)


def _claimed(life: Life) -> float:
    assert life.sampling is not None
    return (life.published_at or 0.0) - life.sampling.hand_seconds


def _latest(steps: Sequence[StepRecord], served: Sequence[Life]) -> Sequence[StepRecord]:
    """As many of the last steps as have no more than `GROUPS` groups between them, one at least."""
    for first in range(len(steps) - 1):
        if sum((life.published_at or 0.0) >= _begin(steps[first]) for life in served) <= GROUPS:
            return steps[first:]
    return steps[-1:]


def _lanes(lives: Iterable[Life]) -> list[Row]:
    """Each group in the first lane of its generator that is free when it is claimed.

    A generator counts until Redis' reply has reached it, after `published_at` and before it tells of the group:
    by so much a group may have been claimed later, and is drawn later where the lane asks for it.
    """
    lanes: dict[str, list[list[Span]]] = {}
    for life in sorted(lives, key=_claimed):
        spans = list(of_group(life))
        if life.sampling is None or not spans:
            continue
        mine = lanes.setdefault(life.sampling.generator, [])
        ends = [(max(0.0, taken[-1].end - spans[0].begin), lane) for lane, taken in enumerate(mine)]
        late, lane = min(ends, default=(0.0, 0))
        if not mine or late > max(SLACK, (life.sampled_at or 0.0) - (life.published_at or 0.0)):
            late, lane = 0.0, len(mine)
            mine.append([])
        mine[lane] += [Span(span.name, span.begin + late, span.seconds) for span in spans]
    return [Row(name, tuple(s), n) for name, mine in sorted(lanes.items()) for n, s in enumerate(mine)]


def _fair(rows: Sequence[Row]) -> list[Row]:
    """At most `LANES`, the first ones of each generator."""
    if len(rows) <= LANES:
        return list(rows)
    kept = sorted(rows, key=lambda row: (row.lane, row.process))[:LANES]
    return sorted(kept, key=lambda row: (row.process, row.lane))


def _notes(run: Dossier, served: bool, lanes: int) -> Iterator[str]:
    steps = run.progress.steps
    if any(r.loop_seconds for r in steps):
        yield "Learner: how waits and claims alternate within a step is not on record, so each is drawn in one piece."
    elif steps:
        yield "Learner: of what it does around an update, this run's steps.jsonl tells waiting alone."
    if any(r.publish_seconds for r in steps):
        yield (
            "Publications are drawn as begun when the step before was done, which is when they are asked for; the wait "
            "for one at the step's end, also where it was an evaluation that waited."
        )
    if not served:
        return
    yield (
        "Generators: each group in hand takes a lane. A gap is a free slot, a group that is not yet published, or an "
        "evaluation: of these the audit log tells nothing, nor of when weights are taken up."
    )
    if lanes > LANES:
        yield f"{LANES} of {lanes} lanes are shown."
    yield "Learner and audit log each go by their own clock; on two machines these may differ."
