"""`make logs`: what all processes of a run say, merged and told apart, until the run has ended."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.run_folder import RunFolder
from monitoring.logs import Printer, logs, plain
from tests.system.pipeline import ROOT, wait_until

COMMAND = [sys.executable, "-m", "monitoring.logs", str(ROOT / "recipes/tiny.toml")]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with a learner, a generator and a Redis that have spoken."""
    made = RunFolder(tmp_path / "tiny")
    made.log("").parent.mkdir(parents=True)
    made.redis.mkdir()
    made.log("learner").write_bytes(b"loads\nstep 1\n")
    made.log("generator-0").write_bytes(b"starts\n")
    (made.redis / "redis.log").write_bytes(b"Ready to accept connections\n")
    return made


def look(folder: RunFolder, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--run.directory", str(folder.path.parent), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


class Following:
    """`make logs` beside a run that goes on."""

    def __init__(self, folder: RunFolder, output: Path) -> None:
        hold = folder.hold()
        assert hold is not None
        self.hold, self.output = hold, output
        with output.open("wb") as file:
            command = [*COMMAND, "--run.directory", str(folder.path.parent), "--lines", "1"]
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)

    @property
    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def says(self, line: str) -> None:
        wait_until(lambda: line in self.lines, f"it says {line!r}", 30)


@pytest.fixture
def following(folder: RunFolder, tmp_path: Path) -> Iterator[Following]:
    one = Following(folder, tmp_path / "output")
    yield one
    one.process.kill()
    one.process.wait()
    one.hold.close()


def test_every_line_stands_behind_the_name_of_its_process(folder: RunFolder) -> None:
    done = look(folder)
    assert done.stdout.splitlines() == [
        "generator-0 | starts",
        "learner     | loads",
        "learner     | step 1",
        "redis       | Ready to accept connections",
    ], done.stderr
    assert (done.returncode, done.stderr) == (0, ""), "a run that is over is not waited for"


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("", ["generator-0", "learner", "redis"]),
        ("generator", ["generator-0"]),
        ("generator-0", ["generator-0"]),
        ("learner", ["learner"]),
        ("exporter", []),
    ],
)
def test_of_one_role_alone(folder: RunFolder, role: str, names: list[str]) -> None:
    assert [name for name, _ in logs(folder, role)] == names


def test_a_role_that_there_is_not_is_refused_by_name(folder: RunFolder) -> None:
    done = look(folder, "--role", "trainer")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"headrace: no process is called 'trainer': ROLE is one of .*generator-0.*\n", done.stderr)


def test_who_joins_later_is_told_from_the_beginning_and_it_ends_with_the_run(
    folder: RunFolder, following: Following
) -> None:
    following.says("learner     | step 1")
    folder.log("generator-1").write_bytes(b"I am new\nand here\n")
    following.says("generator-1 | I am new")
    following.says("generator-1 | and here")
    with folder.log("learner").open("ab") as log:
        log.write(b"the end, without a newline")
    assert following.process.poll() is None, "the run goes on"
    following.hold.close()
    assert following.process.wait(30) == 0
    assert following.lines[-1] == "learner     | the end, without a newline"
    assert "learner     | loads" not in following.lines, "one line of each was asked for to begin with"


def test_ctrl_c_ends_it_without_a_word(following: Following) -> None:
    following.says("learner     | step 1")
    before = following.lines
    following.process.send_signal(signal.SIGINT)
    assert following.process.wait(30) == 0
    assert following.lines == before


def test_each_process_has_a_colour_on_a_terminal() -> None:
    out = io.StringIO()
    printer = Printer(out, coloured=True)
    for name in ("learner", "redis", "learner"):
        printer.line(name, b"x")
    colours = re.findall(r"\x1b\[(\d+)m\w+ *\|\x1b\[0m x", out.getvalue())
    assert len(colours) == 3
    assert colours[0] == colours[2] != colours[1]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\xff\xfe no text", "\ufffd\ufffd no text"),
        (b"loading: 10%\rloading: 100%", "loading: 100%"),
        (b"with an end of DOS\r", "with an end of DOS"),
        (b"\x1b[31mred\x1b[0m and \x1b]0;a title\x07", r"red and \x1b]0;a title\x07"),
        ("schön\tund gut".encode(), "schön\tund gut"),
    ],
)
def test_what_a_process_wrote_does_nothing_to_the_terminal(raw: bytes, shown: str) -> None:
    assert plain(raw) == shown
