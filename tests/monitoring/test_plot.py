"""The picture: it can be drawn of every run that took a step, and points lie where they belong."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from monitoring.plot import png, step_of
from monitoring.progress import Evaluation, Progress
from monitoring.recipe import resolved
from tests.monitoring.fabricated import Run


def progress_of(run: Run) -> Progress:
    progress = Progress(run.folder.steps)
    progress.read()
    return progress


@pytest.mark.parametrize("steps", [1, 2, 45])
@pytest.mark.parametrize("evaluated", [None, 0.4])
def test_every_run_that_took_a_step_can_be_drawn(tmp_path: Path, steps: int, evaluated: float | None) -> None:
    run = Run(tmp_path)
    run.evaluate("start", 0, evaluated)
    for step in range(1, steps + 1):
        run.plain_step(step, 3.0 / step - 1)
    image = png(progress_of(run), resolved(run.folder))
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">II", image[16:24]) == (1600, 1120)


def test_an_evaluation_lies_at_the_step_that_made_its_version(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3, 4):
        run.plain_step(step)
    progress = progress_of(run)
    progress.steps = [r.model_copy(update={"policy_version": r.step // 2}) for r in progress.steps]  # publish_every 2
    where = {v: step_of(Evaluation(label="x", policy_version=v, samples=1, pass_at_1=1.0), progress) for v in range(4)}
    assert where == {0: 0, 1: 2, 2: 4, 3: 4}
