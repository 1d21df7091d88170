"""steps.jsonl as it grows, breaks and repeats itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.progress import EvaluationRecord, Progress, StepRecord
from tests.monitoring.fabricated import TOKENS, Run


def test_what_a_learner_writes_is_what_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    progress = Progress(run.folder.steps)
    assert progress.read() == []
    run.evaluate("start", 0, 0.2)
    run.plain_step(1, 0.25)
    first, second = progress.read()
    assert isinstance(first, EvaluationRecord)
    assert isinstance(second, StepRecord)
    assert (first.eval.label, first.eval.pass_at_1, first.eval.samples) == ("start", 0.2, 200)
    assert (second.step, second.steps, second.policy_version, second.samples) == (1, 45, 1, 12)
    assert second.groups == {"trained": 2, "degenerate": 1, "stale": 0, "failed": 0}
    assert progress.read() == []
    run.plain_step(2)
    assert [r.step for r in progress.read() if isinstance(r, StepRecord)] == [2]


def test_a_half_written_line_counts_once_its_newline_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1)
    run.plain_step(2)
    whole = run.folder.steps.read_bytes()
    progress = Progress(run.folder.steps)
    seen = []
    for end in range(0, len(whole), 7):
        run.folder.steps.write_bytes(whole[:end])
        progress.read()
        seen.append(len(progress.steps))
        assert len(progress.steps) == whole[:end].count(b"\n")
    run.folder.steps.write_bytes(whole)
    progress.read()
    assert [r.step for r in progress.steps] == [1, 2]
    assert set(seen) == {0, 1}
    assert progress.unreadable == 0


def test_of_two_lines_of_a_step_the_later_holds(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, reward in ((1, 0.1), (2, 0.2), (3, 0.3)):
        run.plain_step(step, reward)
    progress = Progress(run.folder.steps)
    progress.read()
    run.restart()
    run.plain_step(3, 0.9)
    progress.read()
    assert [(r.step, round(r.reward, 6)) for r in progress.steps] == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert progress.whole.groups["trained"] == 6


def test_steps_that_a_learner_went_back_behind_are_forgotten(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3, 4):
        run.plain_step(step, 0.1)
    run.restart()
    run.plain_step(2, 0.7)
    progress = Progress(run.folder.steps)
    progress.read()
    assert [(r.step, round(r.reward, 6)) for r in progress.steps] == [(1, 0.1), (2, 0.7)]


def test_a_repeated_evaluation_counts_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.evaluate("start", 0, 0.2)
    run.evaluate("start", 0, 0.3)
    run.evaluate("periodic", 5, 0.5)
    progress = Progress(run.folder.steps)
    progress.read()
    assert [(r.eval.label, r.eval.pass_at_1) for r in progress.evaluations] == [("start", 0.3), ("periodic", 0.5)]
    start, latest = progress.evaluation("start"), progress.evaluation()
    assert start is not None
    assert latest is not None
    assert (start.pass_at_1, latest.label, progress.evaluation("end")) == (0.3, "periodic", None)


def test_why_a_run_is_over_holds_until_it_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    progress = Progress(run.folder.steps)
    assert (progress.outcome, progress.last_time) == (None, None)
    run.plain_step(1)
    run.now += 7
    run.end("solved")
    progress.read()
    assert (progress.outcome, progress.last_time, progress.unreadable) == ("solved", run.now, 0)
    run.plain_step(2)
    progress.read()
    assert progress.outcome is None


@pytest.mark.parametrize(
    "line", [b"\x00\xff\x93", b"{}", b"[1]", b'{"time": 1, "step": "many"}', b'{"time": 1, "eval"']
)
def test_an_unreadable_line_is_counted_and_the_rest_is_read(tmp_path: Path, line: bytes) -> None:
    run = Run(tmp_path)
    run.plain_step(1)
    with run.folder.steps.open("ab") as file:
        file.write(line + b"\n")
    run.plain_step(2)
    progress = Progress(run.folder.steps)
    progress.read()
    assert [r.step for r in progress.steps] == [1, 2]
    assert progress.unreadable == 1


def test_only_new_bytes_are_looked_at(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1)
    progress = Progress(run.folder.steps)
    progress.read()
    with run.folder.steps.open("r+b") as file:
        file.write(b"x" * 50)  # whoever looks at the first line again trips over it
    run.plain_step(2)
    assert len(progress.read()) == 1
    assert ([r.step for r in progress.steps], progress.unreadable) == ([1, 2], 0)


def test_a_folder_that_is_begun_anew_is_read_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1)
    run.plain_step(2)
    progress = Progress(run.folder.steps)
    progress.read()
    run.folder.steps.unlink()
    run.plain_step(1, 0.75)
    progress.read()
    assert [(r.step, r.reward) for r in progress.steps] == [(1, 0.75)]


def test_a_stretch_weighs_each_sample_and_each_token_alike(tmp_path: Path) -> None:
    run = Run(tmp_path)
    # 8 samples of reward 0.5 on average, 4 of 1.0; then 4 of 0.5: a mean of the steps' means would be 0.583.
    run.step(1, {"trained": [[1.0, 0.0] * 2] * 2, "degenerate": [[1.0] * 4]}, {0: 30, 2: 10}, seconds=10, waited=5)
    run.step(2, {"trained": [[1.0, 0.0] * 2]}, {1: 4}, seconds=30, waited=5)
    progress = Progress(run.folder.steps)
    progress.read()
    whole = progress.whole
    assert whole.reward == pytest.approx((4 + 4 + 2) / 16)
    assert whole.ages == {0: 30, 1: 4, 2: 10}
    assert whole.staleness_mean == pytest.approx((4 + 20) / 44)
    assert whole.staleness_max == 2
    assert whole.groups == {"trained": 3, "degenerate": 1, "stale": 0, "failed": 0}
    assert (whole.sampled, whole.trained) == (16 * TOKENS, 44)
    assert whole.seconds == 40
    assert whole.per_second(whole.trained) == pytest.approx(1.1)
    assert whole.wait_fraction == pytest.approx(0.25)
    assert progress.under_way.records == progress.steps[1:]


def test_nothing_has_no_mean() -> None:
    nothing = Progress(Path("nowhere")).whole
    assert (nothing.reward, nothing.staleness_mean, nothing.staleness_max, nothing.wait_fraction) == (None,) * 4
