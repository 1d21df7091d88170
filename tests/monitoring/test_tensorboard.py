"""`make tensorboard`: what TensorBoard itself reads of a run, while it goes on and once it is over."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.run_folder import RunFolder
from tests.monitoring.fabricated import BEGAN, Run
from tests.system.pipeline import wait_until
from tests.system.processes import ROOT

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder: RunFolder) -> dict[str, dict[int, tuple[float, float]]]:
    """Of each figure the value and the time at each step, as TensorBoard has them."""
    read = accumulator.EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: (e.value, e.wall_time) for e in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def started(folder: RunFolder) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "monitoring.tensorboard", str(folder.path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def converted(folder: RunFolder) -> dict[str, dict[int, tuple[float, float]]]:
    """Those of a run that is over."""
    folder.summary.write_text("{}")
    with started(folder) as process:
        said, complaint = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, f"tensorboard --logdir {folder.tensorboard}\n"), complaint
    return scalars(folder)


def test_every_number_is_at_its_step_and_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(1, {"trained": [[1.0, 0.0]]}, ages={0: 10, 2: 30})
    run.step(2, {"trained": [[1.0, 1.0]], "stale": [[0.0, 0.0]]})
    run.evaluate("start", 2, 0.25)
    with run.folder.steps.open("a") as file:
        file.write("no record\n")
    found = converted(run.folder)
    assert found["reward"] == {1: (0.5, BEGAN + 10), 2: (0.5, BEGAN + 20)}
    assert found["staleness_max"][1][0] == 2
    assert found["staleness_histogram/2"] == {1: (30, BEGAN + 10)}
    assert found["groups/stale"][2][0] == 1
    assert found["eval start/pass_at_1"][2][0] == 0.25
    assert math.isnan(found["grad_norm"][1][0])
    assert not {"time", "step", "steps"} & found.keys()


def test_a_step_that_is_taken_again_replaces_what_stood_there(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for number in (1, 2, 3):
        run.step(number, {"trained": [[0.0, 0.0]]})
    run.restart()
    for number in (2, 3):
        run.step(number, {"trained": [[1.0, 1.0]]})
    assert {step: value for step, (value, _) in converted(run.folder)["reward"].items()} == {1: 0.0, 2: 1.0, 3: 1.0}


def test_a_run_that_goes_on_is_followed_until_we_are_told_to_stop(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(1, {"trained": [[0.0, 1.0]]})
    with started(run.folder) as process:
        assert process.stdout
        process.stdout.readline()
        wait_until(lambda: scalars(run.folder).get("reward", {}).keys() == {1}, "the first step is there")
        run.step(2, {"trained": [[0.0, 1.0]]})
        wait_until(lambda: scalars(run.folder)["reward"].keys() == {1, 2}, "the second one is there")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with started(RunFolder(tmp_path / "none")) as process:
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert complaint == f"headrace: no run folder {tmp_path / 'none'}: name one, for example runs/demo\n"
