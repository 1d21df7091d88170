"""Children of the launcher: they come back, slower each time, until they do not; and nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.children import LONGEST_BACKOFF, MAX_QUICK_FAILURES, QUICK_SECONDS, Child
from tests.clock import Clock
from tests.system.pipeline import ROOT, wait_until

Start = Callable[..., Child]
SLEEP = "exec sleep 600"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(tmp_path: Path, clock: Clock) -> Iterator[Start]:
    """A child that runs a line of shell, and is gone when the test is."""
    children = list[Child]()

    def begin(script: str, **options: object) -> Child:
        log = tmp_path / f"{len(children)}.log"
        children.append(Child("child", ["/bin/sh", "-c", script], log, clock=clock, **options))  # type: ignore[arg-type]
        children[-1].start()
        return children[-1]

    yield begin
    for child in children:
        child.ask_to_stop()
        child.stop(0.0)


def ended(child: Child) -> int:
    assert child.process is not None
    return child.process.wait(30)


def said(child: Child) -> str:
    assert child.log is not None
    return child.log.read_text()


def pid_of(child: Child) -> int:
    assert child.process is not None
    return child.process.pid


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- coming back ------------------------------------------------------------------------------------------------------


def test_one_that_runs_is_left_alone(start: Start) -> None:
    child = start(SLEEP)
    pid = pid_of(child)
    assert child.status is None
    assert child.revive()
    assert (pid_of(child), child.restarts) == (pid, 0)


def test_one_that_was_never_started_is_no_failure() -> None:
    child = Child("child", ["/bin/true"], None)
    child.ask_to_stop()
    child.stop(0.0)
    assert child.status is None
    assert child.last_words() == ""


def test_each_quick_failure_doubles_the_wait_until_it_is_given_up(start: Start, clock: Clock) -> None:
    child, waits = start("exit 1"), list[float]()
    ended(child)
    while child.revive():
        waits.append(child.due - clock.now)
        failed = child.restarts
        clock.now = child.due - 0.001
        assert child.revive()
        assert child.restarts == failed, "a moment too early"
        clock.now = child.due
        assert child.revive()
        assert child.restarts == failed + 1
        ended(child)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(waits) == MAX_QUICK_FAILURES
    assert not child.revive(), "given up is given up"
    assert child.restarts == MAX_QUICK_FAILURES


def test_a_long_life_is_forgiven(start: Start, clock: Clock) -> None:
    child = start("exit 1")
    for _ in range(3 * MAX_QUICK_FAILURES):
        ended(child)
        clock.now += QUICK_SECONDS
        assert child.revive()
        assert child.due - clock.now == 1.0
        clock.now = child.due
        assert child.revive()
    assert child.restarts == 3 * MAX_QUICK_FAILURES


def test_no_wait_is_longer_than_the_longest(start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.children.MAX_QUICK_FAILURES", 9)
    child, waits = start("exit 1"), list[float]()
    ended(child)
    while child.revive():
        waits.append(child.due - clock.now)
        clock.now = child.due
        child.revive()
        ended(child)
    assert max(waits) == LONGEST_BACKOFF


def test_one_that_was_killed_comes_back_as_another_process(start: Start, clock: Clock) -> None:
    child = start(SLEEP)
    pid = pid_of(child)
    os.kill(pid, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    child.revive()
    clock.now = child.due
    child.revive()
    assert child.status is None
    assert pid_of(child) != pid


# -- its own place ----------------------------------------------------------------------------------------------------


def test_each_has_a_session_and_a_log_of_its_own_and_no_standard_input(start: Start) -> None:
    child = start("cat; echo to stdout; echo to stderr >&2; echo $GREETING; exec sleep 600", env={"GREETING": "hello"})
    wait_until(lambda: said(child).count("\n") == 3, "it has spoken")
    assert said(child) == "to stdout\nto stderr\nhello\n"
    assert os.getsid(pid_of(child)) == pid_of(child) != os.getsid(0)


def test_a_new_life_goes_on_in_the_same_log(start: Start, clock: Clock) -> None:
    child = start("echo again")
    ended(child)
    child.revive()
    clock.now = child.due
    child.revive()
    ended(child)
    assert said(child) == "again\nagain\n"


# -- the end ----------------------------------------------------------------------------------------------------------


def test_one_that_is_asked_to_stop_may_do_so_in_its_own_way(start: Start) -> None:
    child = start("trap 'echo farewell; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: "ready" in said(child), "it listens")
    child.ask_to_stop()
    child.stop(60.0)
    assert child.status == 5
    assert "farewell" in said(child)
    child.ask_to_stop()
    child.stop(60.0)
    assert child.status == 5, "asking the dead is harmless"


def test_one_that_does_not_listen_is_killed(start: Start) -> None:
    child = start("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: "ready" in said(child), "it has stopped listening")
    child.ask_to_stop()
    child.stop(0.1)
    assert child.status == -signal.SIGKILL


@pytest.mark.parametrize("last", ["exit 0", "wait"])
def test_what_it_started_itself_ends_with_it(start: Start, last: str) -> None:
    """Whether it has ended before us or not: vLLM's workers are such grandchildren."""
    child = start(f"sleep 600 & echo $!; {last}")
    wait_until(lambda: said(child).endswith("\n"), "it has a child")
    grandchild = int(said(child))
    child.stop(0.1)
    wait_until(lambda: gone(grandchild), "the grandchild is gone", 10)


def test_none_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from deploy.children import Child\n"
    script += f"child = Child('child', ['/bin/sh', '-c', '{SLEEP}'], Path(sys.argv[1]))\nchild.start()\n"
    script += "print(child.process.pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # Its way leads over an interpreter that asks the kernel for this, and then becomes what it is meant to be.
        wait_until(lambda: psutil.Process(child).name() == "sleep", "the child is what it is meant to be")
        parent.kill()
        parent.wait()
    wait_until(lambda: gone(child), "the child is gone", 10)


# -- last words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("true", ""),
        ("echo one; echo two; echo", "two"),
        ("echo 'headrace: no Redis: start one' >&2; echo bye", "headrace: no Redis: start one"),
        ("printf 'headrace: one\\nheadrace: two\\n'", "headrace: two"),
        ("printf 'Traceback\\n  File\\nValueError: what\\n'", "ValueError: what"),
        ("printf '\\377\\376 bytes\\n'", "\ufffd\ufffd bytes"),
        ("i=0; while [ $i -lt 3000 ]; do echo $i filler; i=$((i+1)); done; echo last", "last"),
    ],
)
def test_its_last_words_are_its_refusal_or_else_its_last_line(start: Start, script: str, words: str) -> None:
    child = start(script)
    ended(child)
    assert child.last_words() == words


def test_its_last_words_are_of_this_life_and_not_of_an_earlier_one(start: Start, tmp_path: Path) -> None:
    """The log of yesterday's refused start is still there when today's crash is reported."""
    (tmp_path / "0.log").write_text("headrace: no free disk: free some\n")
    child = start("echo 'ValueError: what'; exit 1")
    ended(child)
    assert child.last_words() == "ValueError: what"
