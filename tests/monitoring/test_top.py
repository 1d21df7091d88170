"""The view as a process: on a real terminal of 80 × 24, into a pipe, told to stop, and pointed at nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len

from monitoring.metrics import GeneratorMetrics
from tests.monitoring.fabricated import BEGAN, Run
from tests.monitoring.test_endpoints import served
from tests.monitoring.test_watch import endpoints, launch
from tests.ports import free_port
from tests.system.pipeline import ROOT, wait_until

ENDS = 120.0  # seconds within which a view that was told to end has to, on a machine that has other things to do
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REDRAWN = "\x1b[1A\x1b[2K"  # one row up and wiped: a frame is drawn over the one before
UNSET = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONPATH")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in UNSET}
    return kept | {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | more


@dataclass
class View:
    """A view that runs, and everything it has put out so far."""

    process: subprocess.Popen[bytes]
    output: int
    said: bytes = b""

    @property
    def text(self) -> str:
        while select.select([self.output], [], [], 0)[0]:
            try:
                more = os.read(self.output, 65536)
            except OSError:  # a terminal whose last process has ended says so by an error
                break
            if not more:
                break
            self.said += more
        return self.said.decode()

    @property
    def frame(self) -> list[str]:
        """The rows that were drawn last."""
        return [ESCAPES.sub("", row).rstrip() for row in self.text.split(REDRAWN)[-1].splitlines()]

    def shows(self, what: str) -> None:
        """Wait until it does."""
        wait_until(lambda: what in ESCAPES.sub("", self.text.split(REDRAWN)[-1]), f"{what!r} is shown")

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(ENDS)


@contextmanager
def _started(arguments: Sequence[str | Path], output: int, reading: int, **env: str) -> Iterator[View]:
    command = [sys.executable, "-m", "monitoring.top", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment(**env),
        start_new_session=True,  # as the launcher starts it
    )
    os.close(output)
    try:
        yield View(process, reading)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(reading)


@contextmanager
def on_terminal(recipe: Path, rows: int = 24, columns: int = 80) -> Iterator[View]:
    """A view on a terminal of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with _started([recipe], slave, master) as view:
        yield view


@contextmanager
def into_pipe(*arguments: str | Path, **env: str) -> Iterator[View]:
    """A view whose output goes to no terminal."""
    reading, writing = os.pipe()
    with _started(arguments, writing, reading, **env) as view:
        yield view


def test_a_terminal_of_80_by_24_shows_the_run_and_keeps_its_last_state(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    run = Run(tmp_path, sections=endpoints(ports))
    hold = launch(run, "starting the generators", at=BEGAN)
    generator = GeneratorMetrics()
    generator.slots.set(8)
    with served(run.metrics, ports[0]), served(generator, ports[1]), on_terminal(run.folder.recipe) as view:
        view.shows("starting the generators")
        run.evaluate("start", 0, 0.21)
        run.metrics.waiting("ticket", "t00000012")
        for step in range(1, 7):
            run.plain_step(step, 0.1 * step, ages={0: 10, 1: 30, 3: 10})
        view.shows("6/45")
        view.shows("waits for ticket t00000012")
        view.shows("0 of 8 slots busy")
        run.plain_step(7, 0.7)
        view.shows("7/45")
        assert view.stop() == 0
        frame, text = view.frame, view.text
    assert hold
    assert len(frame) <= 24
    assert max(cell_len(row) for row in frame) <= 80
    shown = "\n".join(frame)
    for figure in (
        "demo  smollm2-135m-instruct",
        "7/45",
        "version 7",
        "first 5 0.30  last 5 0.50",
        "start 0.21 (200 samples)",
        "mean 1.15   max 3 of 8 allowed",
        "tok/s",
        "groups/s",
        "degenerate",
    ):
        assert figure in shown
    assert text.endswith("\n\x1b[?25h")  # below the last state, which nothing wiped, and the cursor is back


def test_into_a_pipe_go_plain_lines_until_the_run_ends(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=2)
    hold = launch(run, "starting Redis", at=BEGAN)
    with into_pipe(run.folder.recipe) as view:
        view.shows("demo: starting Redis\n")
        run.folder.phase.write_text("starting the generators")
        os.utime(run.folder.phase, (BEGAN, BEGAN))
        view.shows("demo: starting the generators\n")
        run.evaluate("start", 0, 0.215)
        view.shows("evaluation start")
        run.plain_step(1, 0.25)
        written = run.folder.steps.read_bytes()
        run.plain_step(2, 0.43)
        whole = run.folder.steps.read_bytes()
        run.folder.steps.write_bytes(whole[: len(written) + 40])  # the second step is half written
        view.shows("step 1/2")
        assert "step 2/2" not in view.text
        run.folder.steps.write_bytes(whole)
        view.shows("step 2/2")
        hold.close()  # type: ignore[attr-defined]  # the launcher has gone
        assert view.process.wait(ENDS) == 0
        assert view.text.splitlines() == [
            "demo: starting Redis",
            "demo: starting the generators",
            "evaluation start  pass@1 0.21  (200 samples, version 0)",
            "step 1/2  reward 0.25  staleness 0.8 (max 1)  trained 2 degenerate 1 stale 0 failed 0"
            "  gen 12 tok/s  learn 4 tok/s",
            "step 2/2  reward 0.43  staleness 0.8 (max 1)  trained 2 degenerate 1 stale 0 failed 0"
            "  gen 12 tok/s  learn 4 tok/s",
            "demo: not running after step 2 of 2, 20 s",
        ]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_was_written_just_before_the_stop_is_still_said(tmp_path: Path, signum: signal.Signals) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    with into_pipe(run.folder.recipe) as view:
        view.shows("starting the generators")
        run.plain_step(1)
        assert view.stop(signum) == 0
        assert "step 1/45" in view.text
    assert hold


def test_a_step_that_is_repeated_shows_as_it_was_taken_last(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    run.plain_step(1, 0.25)
    run.plain_step(2, 0.3)
    run.restart()
    run.plain_step(2, 0.75)
    with on_terminal(run.folder.recipe) as view:
        view.shows("2/45")
        assert view.stop() == 0
        shown = "\n".join(view.frame)
    assert "0.75  first 2 0.50  last 2 0.50" in shown
    assert hold


def test_where_nothing_runs_the_last_state_is_shown_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1, 0.25)
    with into_pipe(run.folder.recipe) as view:
        assert view.process.wait(ENDS) == 0
        first, second = view.text.splitlines()
    assert first.startswith("step 1/45  reward 0.25")
    assert second == "demo: not running after step 1 of 45, 10 s"
    with on_terminal(run.folder.recipe) as view:
        assert view.process.wait(ENDS) == 0
        assert view.frame[0].endswith("not running")


def test_a_finished_run_ends_the_view_though_its_launcher_is_still_there(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1)
    hold = launch(run, "stopping", at=BEGAN)
    run.plain_step(1)
    with into_pipe(run.folder.recipe) as view:
        view.shows("step 1/1")
        run.folder.summary.write_text("{}")
        assert view.process.wait(ENDS) == 0
        assert view.text.splitlines()[-1] == "demo: finished after step 1 of 1, 10 s"
    assert hold


def test_a_process_that_never_answers_holds_up_neither_the_view_nor_its_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        run = Run(tmp_path, sections=endpoints((mute.getsockname()[1], 0)))
        hold = launch(run, "starting the generators", at=BEGAN)
        with on_terminal(run.folder.recipe) as view:
            view.shows("not up yet")
            run.plain_step(1)
            view.shows("1/45")
            assert view.stop() == 0
    assert hold


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.plain_step(1, 0.25)
    master, slave = pty.openpty()
    with _started([run.folder.recipe], slave, master, TERM="dumb") as view:
        assert view.process.wait(ENDS) == 0
        assert view.text.startswith("step 1/45  reward 0.25")
        assert "\x1b" not in view.text


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    hold = launch(run, "starting the generators", at=BEGAN)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "monitoring.top", str(run.folder.recipe)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, env=environment())
    os.close(writing)
    wait_until(lambda: select.select([reading], [], [], 0)[0], "the first line is there")
    os.close(reading)
    run.plain_step(1)
    _, errors = process.communicate(timeout=ENDS)
    assert (process.returncode, errors) == (0, b"")
    assert hold


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (None, "headrace: no recipe at {path}: name a TOML file"),
        ("[run]\nname = 3", "headrace: {path}: run.name: "),
        ('[run]\nname = "none"\nmodel = "m"\nsteps = 1\ndirectory = "{folder}"\n[sampling]\nmax_tokens = 1\n',
         "headrace: there is no run in {folder}/none: "),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_one_clear_line(tmp_path: Path, recipe: str | None, said: str) -> None:
    path = tmp_path / "mine.toml"
    if recipe is not None:
        path.write_text(recipe.format(folder=tmp_path))
    with into_pipe(path) as view:
        assert view.process.wait(ENDS) == 2
        assert view.text.startswith(said.format(path=path, folder=tmp_path))
        assert view.text.count("\n") == 1
