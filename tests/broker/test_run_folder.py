"""The folder of a run: one launcher at a time across processes, and the next name for whoever comes after the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.run_folder import RunFolder, current, successors, unfinished
from broker.settings import RunSettings
from tests.system.pipeline import ROOT

HOLDER = """
import subprocess, sys
from pathlib import Path
from broker.run_folder import RunFolder
hold = RunFolder(Path(sys.argv[1])).hold()
child = subprocess.Popen(["sleep", "600"])
print("none" if hold is None else "held", child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "demo")


@contextmanager
def elsewhere(folder: RunFolder) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that tries to hold the folder, and has a child of its own; and what came of it."""
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        answer, child = process.stdout.readline().split()
        try:
            yield process, answer
        finally:
            os.kill(int(child), signal.SIGKILL)
            process.kill()


def run_of(folder: Path, name: str = "demo") -> RunSettings:
    return RunSettings(name=name, model="m", steps=1, directory=folder)


def finish(run: RunSettings) -> None:
    RunFolder.of(run).path.mkdir(parents=True, exist_ok=True)
    RunFolder.of(run).summary.write_text("{}")


# -- the hold ---------------------------------------------------------------------------------------------------------


def test_nobody_holds_a_folder_that_is_not_there(folder: RunFolder) -> None:
    assert folder.launcher() is None
    assert not folder.path.exists(), "and asking makes none"


def test_a_folder_is_held_until_the_file_is_closed(folder: RunFolder) -> None:
    hold = folder.hold()
    assert hold is not None
    with hold:
        assert folder.launcher() == os.getpid()
        assert folder.hold() is None
    assert folder.launcher() is None
    again = folder.hold()
    assert again is not None
    again.close()


def test_another_process_is_kept_out_and_is_told_by_whom(folder: RunFolder) -> None:
    hold = folder.hold()
    assert hold is not None
    with hold, elsewhere(folder) as (_, answer):
        assert answer == "none"
        assert folder.launcher() == os.getpid(), "who failed to get it has not written its own number"


def test_the_hold_of_a_killed_process_ends_with_it_whatever_its_children_do(folder: RunFolder) -> None:
    with elsewhere(folder) as (process, answer):
        assert answer == "held"
        assert folder.launcher() == process.pid
        assert folder.hold() is None
        process.kill()
        process.wait()
        assert folder.launcher() is None, "its number is still in the file, its child still runs"
        hold = folder.hold()
        assert hold is not None
        hold.close()


def test_looking_who_holds_it_never_keeps_a_launcher_out(folder: RunFolder) -> None:
    """Views and `make stop` look; a launcher that begins at just that moment must not be refused."""
    folder.path.mkdir(parents=True)
    folder.pid.touch()
    script = "import sys; from pathlib import Path; from broker.run_folder import RunFolder\n"
    script += "print(flush=True)\nwhile True: RunFolder(Path(sys.argv[1])).launcher()"
    command = [sys.executable, "-c", script, str(folder.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        try:
            for _ in range(100):
                hold = folder.hold()
                assert hold is not None
                hold.close()
        finally:
            looking.kill()


# -- names ------------------------------------------------------------------------------------------------------------


def test_the_first_run_has_the_plain_name(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert [one.name for one in successors(run)] == ["demo"]
    assert current(run) is run
    assert unfinished(run) is run


def test_a_run_that_has_not_ended_is_the_one_to_resume(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    RunFolder.of(run).path.mkdir(parents=True)
    assert unfinished(run) is run
    assert current(run) is run


def test_a_finished_run_is_left_alone_and_the_next_gets_a_number(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    finish(run)
    assert RunFolder.of(run).finished
    assert unfinished(run).name == "demo-2"
    assert current(run).name == "demo", "nothing newer is on disk"
    finish(unfinished(run))
    assert unfinished(run).name == "demo-3"
    RunFolder.of(unfinished(run)).path.mkdir()
    assert (unfinished(run).name, current(run).name) == ("demo-3", "demo-3")
    assert [one.name for one in successors(run)] == ["demo", "demo-2", "demo-3", "demo-4"]


def test_the_first_that_has_not_ended_is_resumed_even_if_a_later_one_has(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    finish(run)
    RunFolder.of(run_of(tmp_path, "demo-2")).path.mkdir()
    finish(run_of(tmp_path, "demo-3"))
    assert unfinished(run).name == "demo-2"
    assert current(run).name == "demo-3"


def test_a_successor_differs_in_its_name_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    finish(run)
    assert unfinished(run) == run.model_copy(update={"name": "demo-2"})


def test_every_file_has_a_place_of_its_own_inside_the_folder(folder: RunFolder) -> None:
    places = [
        *(folder.recipe, folder.steps, folder.summary, folder.plot, folder.model, folder.checkpoints),
        *(folder.redis, folder.phase, folder.pid, folder.log("learner"), folder.log("generator-0")),
    ]
    assert len(set(places)) == len(places)
    assert all(folder.path in place.parents for place in places)
