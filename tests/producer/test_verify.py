"""The verifier pool: a completion that harms its verifier costs itself and nobody else, and no process is left."""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from producer.tasks.base import Problem, Scoring, Verdict
from producer.verify import DIED, VerifierPool

T = TypeVar("T")
TRICKS = "tests.producer.test_verify:tricks"
SUM = Problem("What is 3 + 4?", "7")


def tricks(text: str, problem: Problem) -> Verdict:
    """What a completion might make of its verifier. `problem.gold` is a path where a trick needs one."""
    trick, _, rest = text.partition(" ")
    match trick:
        case "hang":
            while True:
                pass
        case "hang-after-saying-who":  # through a named pipe: whoever reads it knows that we are hanging
            Path(problem.gold).write_text(str(os.getpid()))
            math.factorial(10**9)  # inside C, where no handler of Python's is ever run
        case "hang-with-a-child":
            child = subprocess.Popen(["sleep", "1000"])
            Path(problem.gold).write_text(str(child.pid))
            child.wait()
        case "exit":
            os._exit(3)
        case "exit-once":
            if not Path(problem.gold).exists():
                Path(problem.gold).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise LookupError(rest)
        case "memory":
            bytearray(6 << 30)
        case "nan":
            return Verdict(float("nan"))
        case "noise":
            print('[1.0, {}, ""]', flush=True)
            assert sys.stdin.read() == ""
        case "pid":
            return Verdict(float(os.getpid()))
        case "secret":
            return Verdict(float("HEADRACE_BROKER__PASSWORD" in os.environ))
        case "heavy":
            return Verdict(float(bool({"torch", "vllm", "transformers"} & sys.modules.keys())))
    return Verdict(float(len(rest)), {"length": float(len(rest))})


def pooled(
    body: Callable[[VerifierPool], Awaitable[T]], workers: int = 1, seconds: float = 30.0, of: str = TRICKS
) -> T:
    """What `body` returns, given a running pool."""

    async def run() -> T:
        pool = VerifierPool([Scoring(of)], workers, seconds)
        await pool.start()
        try:
            return await body(pool)
        finally:
            await pool.stop()

    return asyncio.run(run())


def verified(*texts: str, problem: Problem = SUM, seconds: float = 30.0, of: str = TRICKS) -> list[Verdict]:
    return pooled(lambda pool: pool.verify(problem, texts), seconds=seconds, of=of)


def ended(pidfd: int, seconds: float = 20.0) -> bool:
    """Whether the process ends within that time."""
    return bool(select.select([pidfd], [], [], seconds)[0])


def test_a_group_comes_back_in_order() -> None:
    verdicts = verified("ok", "ok a", "ok ab", "ok abc", "ok \ud800\u2028\n\0")
    assert [v.reward for v in verdicts] == [0, 1, 2, 3, 4]
    assert verdicts[2] == Verdict(2.0, {"length": 2.0})


def test_groups_in_flight_do_not_mix() -> None:
    async def body(pool: VerifierPool) -> list[list[Verdict]]:
        groups = [[f"ok {'x' * (i + j)}" for j in range(5)] for i in range(40)]
        return await asyncio.gather(*(pool.verify(SUM, texts) for texts in groups))

    found = pooled(body, workers=3)
    assert [[v.reward for v in group] for group in found] == [[i + j for j in range(5)] for i in range(40)]


def test_an_empty_group_is_no_work() -> None:
    assert verified() == []


def test_conversations_arrive_as_they_were() -> None:
    problem = Problem((("system", "s"), ("user", "u")), "7", "easy")
    assert verified("x", problem=problem, of="tests.producer.test_verify:compares")[0].reward == 1.0


def compares(text: str, problem: Problem) -> Verdict:
    return Verdict(float(problem == Problem((("system", "s"), ("user", "u")), "7", "easy")))


def test_a_hang_costs_only_itself() -> None:
    started = time.monotonic()
    verdicts = verified("ok a", "hang", "ok ab", "hang", "ok abc", seconds=1.0)
    assert [v.reward for v in verdicts] == [1, 0, 2, 0, 3]
    assert [v.failed for v in verdicts] == ["", "the verifier ran for more than 1 s"] * 2 + [""]
    assert verdicts[1].components == {"failed": 1.0}
    assert time.monotonic() - started < 20


def test_a_crash_costs_only_itself() -> None:
    verdicts = verified("ok a", "exit", "ok ab", "exit", "exit")
    assert [v.reward for v in verdicts] == [1, 0, 2, 0, 0]
    assert [v.failed for v in verdicts] == ["", DIED, "", DIED, DIED]
    assert verdicts[1].components == {"failed": 1.0}


def test_a_victim_of_chance_is_not_blamed(tmp_path: Path) -> None:
    verdicts = verified("ok a", "exit-once ab", "ok abc", problem=Problem("", str(tmp_path / "mark")))
    assert [(v.reward, v.failed) for v in verdicts] == [(1, ""), (2, ""), (3, "")]


def test_an_idle_worker_that_is_killed_breaks_nothing() -> None:
    async def body(pool: VerifierPool) -> list[Verdict]:
        for _ in range(3):
            (verdict,) = await pool.verify(SUM, ["pid"])
            assert verdict.reward > 1, verdict.failed  # a signal to 0 would be one to ourselves
            os.kill(int(verdict.reward), signal.SIGKILL)
        return await pool.verify(SUM, ["ok a", "ok ab"])

    assert [v.reward for v in pooled(body)] == [1, 2]


def test_a_verifier_that_raises_has_failed_on_that_completion() -> None:
    verdicts = verified("raise why", "ok a", "nan", "ok ab")
    assert [v.failed for v in verdicts] == [
        "LookupError: why",
        "",
        "the verifier's reward or a component of it is not a finite number",
        "",
    ]
    assert [v.reward for v in verdicts] == [0, 1, 0, 2]
    assert verdicts[0].components == {"failed": 1.0}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit on address space")
def test_memory_is_limited() -> None:
    verdicts = verified("memory", "ok a")
    assert verdicts[0].failed.startswith("MemoryError")
    assert verdicts[1].reward == 1


def test_standard_input_and_output_are_no_way_in() -> None:
    assert [v.reward for v in verified("noise abc", "ok a")] == [3, 1]


def test_a_worker_knows_neither_heavy_modules_nor_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BROKER__PASSWORD", "hunter2")
    assert [(v.reward, v.failed) for v in verified("secret", "heavy")] == [(0, ""), (0, "")]


@pytest.mark.parametrize("module", ["tasks.addition", "tasks.countdown", "verifiers.numeric", "verifiers.symbolic"])
def test_the_verifiers_of_our_tasks_load_nothing_heavy(module: str) -> None:
    code = f"import sys, producer.verify_worker, producer.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "vllm", "transformers", "redis", "pydantic"} & set(loaded)


def test_our_own_tasks_in_the_pool() -> None:
    assert [v.reward for v in verified("3 + 4 = 7", "8", of="producer.tasks.addition:score")] == [1, 0]
    problem = Problem("?", "0.5")
    texts = ["\\boxed{\\frac{1}{2}}", "\\boxed{1/2}", "\\boxed{0.7}", "half"]
    verdicts = verified(*texts, problem=problem, of="producer.verifiers.numeric:score")
    assert [(v.reward, v.failed) for v in verdicts] == [(1, ""), (1, ""), (0, ""), (0, "")]


@pytest.mark.parametrize(
    ("verifier", "why"), [("nowhere:score", "No module named 'nowhere'"), ("math:score", "no attribute 'score'")]
)
def test_a_verifier_that_cannot_be_loaded_is_named(verifier: str, why: str) -> None:
    with pytest.raises(RuntimeError, match=f"cannot start the verifier {verifier}: .*{why}"):
        verified("x", of=verifier)


def test_a_cancelled_group_leaves_no_answers_behind(tmp_path: Path) -> None:
    who = tmp_path / "who"
    os.mkfifo(who)

    async def body(pool: VerifierPool) -> list[Verdict]:
        group = asyncio.create_task(pool.verify(Problem("", str(who)), ["ok aaa", "hang-after-saying-who", "ok aaaa"]))
        await asyncio.to_thread(who.read_text)
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await group
        return await pool.verify(SUM, ["ok a", "ok ab"])

    assert [v.reward for v in pooled(body)] == [1, 2]


def test_no_process_is_left(tmp_path: Path) -> None:
    note = tmp_path / "child"

    async def body(pool: VerifierPool) -> list[int]:
        before, after = (
            await pool.verify(SUM, ["pid"]),
            await pool.verify(Problem("", str(note)), ["hang-with-a-child"]),
        )
        assert "more than 2 s" in after[0].failed
        after = await pool.verify(SUM, ["pid"])
        return [int(before[0].reward), int(after[0].reward)]

    for pid in pooled(body, seconds=2.0):
        with pytest.raises(ProcessLookupError):  # ended and waited for
            os.kill(pid, 0)
    assert gone(int(note.read_text()))


def gone(pid: int) -> bool:
    """What a verifier started ends, too; it was not our child, so a descriptor tells."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return ended(pidfd)
    finally:
        os.close(pidfd)


PARENT = """
import asyncio, sys
from broker.log import setup
from producer.tasks.base import Problem, Scoring
from producer.verify import VerifierPool

async def main():
    setup("test")
    pool = VerifierPool([Scoring("tests.producer.test_verify:tricks")], 2, 3.0)
    await pool.start()
    for worker in pool._workers:
        print(worker._process.pid, flush=True)
    await pool.verify(Problem("", sys.argv[1]), ["hang-after-saying-who"])

asyncio.run(main())
"""


def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    who = tmp_path / "who"
    os.mkfifo(who)
    with subprocess.Popen([sys.executable, "-c", PARENT, str(who)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = {int(parent.stdout.readline()) for _ in range(2)}
        hanging = int(who.read_text())
        pidfds = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
    assert hanging in pids
    for pidfd in pidfds:
        assert ended(pidfd)
        os.close(pidfd)


def test_a_stopped_pool_says_so() -> None:
    async def run() -> None:
        pool = VerifierPool([Scoring(TRICKS)])
        await pool.stop()
        with pytest.raises(RuntimeError, match="has been stopped"):
            await pool.verify(SUM, ["ok"])

    asyncio.run(run())


def test_a_group_of_sums_takes_a_few_milliseconds() -> None:
    async def body(pool: VerifierPool) -> float:
        times = []
        for _ in range(100):
            started = time.perf_counter()
            await pool.verify(SUM, ["The sum of 3 and 4 is 7."] * 8)
            times.append(time.perf_counter() - started)
        return min(times)  # the machine may be busy with other things

    assert pooled(body, of="producer.tasks.addition:score") < 0.005
