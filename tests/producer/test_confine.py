"""A verifier has no network, and its share of memory, disk and processor time; taking more costs itself only."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from producer.confine import FILE_BYTES
from producer.tasks.base import Problem, Scoring, Verdict
from producer.verify import OVERSPENT, VerifierPool
from producer.verify_lines import decode_greeting, encode_request

GREEDY = "tests.producer.test_confine:greedy"
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps this limit")


def greedy(text: str, problem: Problem) -> Verdict:
    """Takes what `text` says. `problem.gold` is a port or a path."""
    match text.split()[0]:
        case "connect":
            socket.create_connection(("127.0.0.1", int(problem.gold)), timeout=5).close()
        case "listen":
            socket.create_server(("127.0.0.1", int(problem.gold))).close()
        case "resolve":
            socket.getaddrinfo("localhost.localdomain.invalid", 80)
        case "go-back":
            Path(f"/proc/{os.getppid()}/ns/net").open("rb").close()  # whoever has it open can move in
        case "look-at-the-parent":
            Path(f"/proc/{os.getppid()}/environ").read_bytes()
        case "who":
            return Verdict(float(os.getpid()))
        case "work":
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
        case "burn":
            while True:
                pass
        case "burn-without-an-alarm":
            signal.setitimer(signal.ITIMER_REAL, 0)
            while True:
                pass
        case "burn-in-threads":
            for _ in range(16):
                threading.Thread(target=_burn_outside_the_lock, daemon=True).start()
            threading.Event().wait()
        case "allocate":
            kept: list[mmap.mmap] = []
            while True:
                kept.append(mmap.mmap(-1, 256 << 20))  # asked for and never touched: the machine is not ours alone
        case "write":
            with Path(problem.gold).open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
        case "dump":
            return Verdict(float(max(resource.getrlimit(resource.RLIMIT_CORE))))
        case "answer":
            for number in range(3, 16):
                try:
                    os.write(number, text.removeprefix("answer ").encode() + b"\n")
                except OSError:
                    continue
    return Verdict(1.0)


def _burn_outside_the_lock() -> None:
    import hashlib

    while True:
        hashlib.sha256(bytes(1 << 20))


def verified(*texts: str, gold: str = "", seconds: float = 20.0) -> tuple[list[Verdict], str]:
    """The verdicts, and why the worker has a network if it has one."""

    async def run() -> tuple[list[Verdict], str]:
        pool = VerifierPool([Scoring(GREEDY)], 1, seconds)
        await pool.start()
        try:
            return await pool.verify(Problem("", gold), texts), pool._workers[0].network
        finally:
            await pool.stop()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def confined() -> None:
    _, network = verified()
    if network:
        pytest.skip(f"this machine does not let a process leave its network: {network}")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.mark.usefixtures("confined")
def test_a_verifier_reaches_nobody_not_even_this_machine(listener: socket.socket) -> None:
    port = str(listener.getsockname()[1])
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5):  # we do
        listener.accept()
    verdicts, _ = verified("connect", "ok", "listen", "resolve", gold=port)
    assert "unreachable" in verdicts[0].failed
    assert verdicts[1].reward == 1.0
    assert verdicts[2].failed == ""  # our port is free in there: it is another network
    assert verdicts[3].failed
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.usefixtures("confined")
def test_there_is_no_way_back_and_no_look_at_the_secrets_of_the_parent() -> None:
    verdicts, _ = verified("go-back", "look-at-the-parent", "ok")
    assert [v.failed.split(":")[0] for v in verdicts] == ["PermissionError", "PermissionError", ""]


def test_whether_there_is_a_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        pool = VerifierPool([Scoring(GREEDY)], 1)
        await pool.start()
        await pool.stop()

    with structlog.testing.capture_logs() as logs:
        asyncio.run(run())
    (entry,) = logs
    assert entry["event"] in ("verifiers have no network", "verifiers can reach the network")
    assert ("reason" in entry) == (entry["log_level"] == "warning")


def test_a_loop_costs_itself() -> None:
    verdicts, _ = verified("ok", "burn", "ok", seconds=1.0)
    assert [(v.reward, v.failed) for v in verdicts] == [(1, ""), (0, "the verifier ran for more than 1 s"), (1, "")]


def test_threads_use_up_the_processor_time_of_one() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: threads take no more than a loop does")
    verdicts, _ = verified("burn-in-threads", "ok", seconds=4.0)
    assert verdicts[0].failed in (OVERSPENT, "the verifier ran for more than 4 s")  # as busy as the machine is
    assert verdicts[1].reward == 1.0


def test_who_has_switched_the_alarm_off_is_ended_by_processor_time_without_anybody_watching() -> None:
    """The pool is gone (nobody reads), the alarm is the verifier's: the kernel counts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "producer.verify_worker", json.dumps([[GREEDY, {}]]), "0.2"]
        worker = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        with ours.makefile("rb") as lines:
            assert decode_greeting(lines.readline())[0] == ""
            ours.sendall(encode_request(Problem("", ""), ["burn-without-an-alarm"]))
            assert worker.wait(60) == -signal.SIGXCPU


def test_an_old_worker_has_as_much_time_as_a_young_one() -> None:
    """The limit is renewed: a life of thousands of answers is longer than any one of them may take."""
    verdicts, _ = verified(*["who", *["work"] * 80, "who"], seconds=1.0)
    assert [v.failed for v in verdicts] == [""] * 82
    assert verdicts[0].reward == verdicts[-1].reward > 1  # four seconds of work, two of which are allowed, in one life


@linux
def test_memory_without_end() -> None:
    verdicts, _ = verified("allocate", "ok")
    assert "Cannot allocate memory" in verdicts[0].failed
    assert verdicts[1].reward == 1.0


def test_a_file_without_end(tmp_path: Path) -> None:
    verdicts, _ = verified("write", "ok", gold=str(tmp_path / "huge"))
    assert "File too large" in verdicts[0].failed
    assert (tmp_path / "huge").stat().st_size <= FILE_BYTES
    assert verdicts[1].reward == 1.0


def test_no_core_is_dumped() -> None:
    (verdict,), _ = verified("dump")
    assert (verdict.reward, verdict.failed) == (0.0, "")


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", '[NaN, {}, ""]', '["1", {}, ""]', '[1, {"a": []}, ""]', "[" * 60_000, "x" * 100_000]
)
def test_a_verifier_that_answers_in_the_worker_s_stead_costs_itself(line: str) -> None:
    verdicts, _ = verified(f"answer {line}", "ok")
    assert verdicts[0].reward == 0.0
    assert "answered with something else than a verdict" in verdicts[0].failed
    assert verdicts[-1].reward == 1.0
