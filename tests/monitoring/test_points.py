"""What Prometheus has stored of a learner, made into records again: those of its folder, as far as they were seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.metrics import LearnerMetrics
from monitoring.points import NAMES, PREFIX, Point, Tally, points_of
from monitoring.progress import EvaluationRecord, History, Progress, Record, StepRecord
from monitoring.prometheus_api import Series
from tests.monitoring.fabricated import GROUP, Run

SETTINGS = {"steps": 45.0, "max_staleness": 8.0, "group_size": float(GROUP)}


def scraped(metrics: LearnerMetrics, time: float, instance: str = "a:1", **changed: float) -> list[Series]:
    """What a scrape at that time finds, as a query returns it."""
    found = []
    for family in metrics.registry.collect():
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            if name in NAMES:
                labels = {"__name__": sample.name, "instance": instance, "job": "learner", **sample.labels}
                found.append(Series(labels, [time], [changed.get(name, sample.value)]))
    return found


class Scraped:
    """A run, and what is made of it from its metrics alone."""

    def __init__(self, folder: Path) -> None:
        self.run, self.tally, self.history = Run(folder), Tally(), History()
        self.run.metrics.observe_settings(SETTINGS)

    def scrape(self) -> list[Record]:
        """Now; the records that come of it."""
        (point,) = points_of(scraped(self.run.metrics, self.run.now))
        records = self.tally.take(point)
        self.history.add(records)
        return records

    def restart(self) -> None:
        """A new process, whose counters begin at 0."""
        self.run.metrics = LearnerMetrics()
        self.run.metrics.observe_settings(SETTINGS)
        self.run.restart()

    @property
    def stated(self) -> Progress:
        """What the folder says."""
        progress = Progress(self.run.folder.steps)
        progress.read()
        return progress


@pytest.fixture
def seen(tmp_path: Path) -> Scraped:
    return Scraped(tmp_path)


def test_where_each_step_was_seen_the_records_are_those_of_the_folder(seen: Scraped) -> None:
    assert seen.scrape() == []
    for step in range(1, 8):
        seen.run.plain_step(step, 0.1 * step, ages={0: 10, 1: 20, step: 7}, seconds=step)
        (record,) = seen.scrape()
        assert seen.scrape() == [], "nothing has happened since"
        assert isinstance(record, StepRecord)
        stated = seen.stated.steps[-1]
        for name in ("step", "steps", "covers", "policy_version", "groups", "samples", "staleness_histogram"):
            assert getattr(record, name) == getattr(stated, name), name
        for name in ("time", "reward", "completion_tokens", "seconds", "tokens", "staleness_mean", "staleness_max"):
            assert getattr(record, name) == pytest.approx(getattr(stated, name)), name
    assert seen.history.last().complete
    assert seen.history.whole.groups == seen.stated.whole.groups
    assert seen.history.whole.staleness_mean == pytest.approx(seen.stated.whole.staleness_mean)


def test_steps_between_two_scrapes_are_one_record_that_says_so(seen: Scraped) -> None:
    for step in range(1, 13):
        seen.run.plain_step(step, 0.05 * step)
        if step % 4 == 0:
            seen.scrape()
    assert [(r.step, r.covers, r.seconds) for r in seen.history.steps] == [(4, 4, 40), (8, 4, 40), (12, 4, 40)]
    last = seen.history.last()
    assert (last.steps, last.complete) == (8, False), "five of them are in the records of eight"
    assert last.groups == {"trained": 16, "degenerate": 8, "stale": 0, "failed": 0}
    assert last.per_second(last.trained) == pytest.approx(seen.stated.last(8).per_second(last.trained))


def test_a_restarted_learner_is_counted_from_0_and_repeats_steps(seen: Scraped) -> None:
    for step in (1, 2, 3):
        seen.run.plain_step(step, 0.1)
        seen.scrape()
    seen.restart()
    assert seen.scrape() == [], "it has not taken a step yet"
    for step in (3, 4, 5, 6):  # as many and more than the process before
        seen.run.plain_step(step, 0.5)
    seen.scrape()
    assert [(r.step, r.covers) for r in seen.history.steps] == [(1, 1), (2, 1), (6, 4)]
    assert seen.history.whole.groups == seen.stated.whole.groups


def test_a_new_run_under_the_old_name_is_none_of_the_old_steps(seen: Scraped) -> None:
    for step in range(1, 10):
        seen.run.plain_step(step)
        seen.scrape()
    seen.restart()
    seen.run.plain_step(1)
    seen.run.plain_step(2)
    seen.scrape()
    assert [(r.step, r.covers) for r in seen.history.steps] == [(2, 2)]


def test_tokens_older_than_the_last_bucket_keep_their_mean(seen: Scraped) -> None:
    seen.run.plain_step(1, ages={0: 10, 16: 5, 20: 3, 30: 3})
    seen.scrape()
    assert seen.history.whole.ages == {0: 10, 16: 5, 25: 6}
    assert seen.history.whole.staleness_mean == pytest.approx(seen.stated.whole.staleness_mean)
    assert seen.history.whole.staleness_max == 30


def test_evaluations_are_told_once_each(seen: Scraped) -> None:
    assert seen.scrape() == []
    seen.run.evaluate("start", 0, 0.2)
    seen.run.plain_step(1)
    assert [type(record) for record in seen.scrape()] == [EvaluationRecord, StepRecord]
    seen.run.evaluate("periodic", 1, 0.6)
    (record,) = seen.scrape()
    assert isinstance(record, EvaluationRecord)
    assert (record.eval.label, record.eval.pass_at_1, record.eval.samples) == ("latest", 0.6, 0)
    assert seen.scrape() == []
    first = seen.history.evaluation("first")
    assert first is not None
    assert first.pass_at_1 == 0.2


def test_of_two_learners_at_once_the_younger_counts(seen: Scraped) -> None:
    old, new = LearnerMetrics(), LearnerMetrics()
    old.step.set(9)
    new.step.set(2)
    both = scraped(old, 5.0, "a:1", process_start_time_seconds=100.0)
    both += scraped(new, 5.0, "b:1", process_start_time_seconds=200.0)
    (point,) = points_of(both)
    assert (point.time, point["step"]) == (5.0, 2)


def test_what_is_no_number_is_none_of_it() -> None:
    assert Point(0.0, {"reward": float("nan")})["reward"] == 0.0
    assert Tally().take(Point(0.0, {})) == []
