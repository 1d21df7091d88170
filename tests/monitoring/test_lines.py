"""What a log shows of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.lines import Lines, minutes
from tests.monitoring.fabricated import BEGAN, Run
from tests.monitoring.test_watch import launch, watching


def test_each_phase_step_and_evaluation_is_said_once_and_in_order(tmp_path: Path) -> None:
    run, lines = Run(tmp_path, steps=3), Lines()
    hold = launch(run, "starting the generators", at=BEGAN)
    with watching(run) as watch:
        assert lines.of(watch.look()) == ["demo: starting the generators"]
        assert lines.of(watch.look()) == []
        run.evaluate("start", 0, 0.215)
        assert lines.of(watch.look()) == ["evaluation start  pass@1 0.21  (200 samples, version 0)"]
        run.plain_step(1, 0.25)
        run.plain_step(2, 0.43)
        assert lines.of(watch.look()) == [
            "step 1/3  reward 0.25  staleness 0.8 (max 1)  trained 2 degenerate 1 stale 0 failed 0"
            "  gen 12 tok/s  learn 4 tok/s",
            "step 2/3  reward 0.43  staleness 0.8 (max 1)  trained 2 degenerate 1 stale 0 failed 0"
            "  gen 12 tok/s  learn 4 tok/s  left 10 s",
        ]
        run.plain_step(3)
        assert len(lines.of(watch.look())) == 1
        run.evaluate("end", 3, None)
        assert lines.of(watch.look()) == ["evaluation end  pass@1 failed  (200 samples, version 3)"]
        run.end("finished")
        assert lines.of(watch.look()) == ["outcome finished"]
        run.folder.phase.write_text("stopping")
        assert lines.of(watch.look()) == ["demo: stopping"]
        run.folder.summary.write_text("{}")
        assert lines.of(watch.look()) == ["demo: finished after step 3 of 3, 30 s"]
        assert lines.of(watch.look()) == []
    assert hold


def test_of_what_lies_behind_only_the_latest_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.evaluate("start", 0, 0.2)
    for step in (1, 2, 3):
        run.plain_step(step)
    run.now += 1
    run.evaluate("periodic", 3, 0.5)
    with watching(run) as watch:
        first, second, third = Lines().of(watch.look())
    assert first.startswith("step 3/45 ")
    assert second == "evaluation periodic  pass@1 0.50  (200 samples, version 3)"
    assert third == "demo: not running after step 3 of 45, 31 s"


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    with watching(Run(tmp_path)) as watch:
        assert Lines().of(watch.look()) == ["demo: not running, no step taken"]


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2.0 h")])
def test_times_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    assert minutes(seconds) == said
