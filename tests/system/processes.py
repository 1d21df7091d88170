"""Processes of ours without the seconds that imports take: forked from a server that has imported all of it once.

Each is a process of its own with its own arguments, environment and log, entered as `python -m module` enters it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tests.ports import free_port

PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).parents[2]
MODELS = [f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen2")]
LATE = [*MODELS, "math_verify"]  # imported by whoever needs them; torch and all else come with ours
OURS = ["consumer.crew", "consumer.learner", "consumer.recovery", "producer.generator", "producer.transformers_engine"]
BEFORE = [*LATE, *OURS]  # the server passes over what is not there


@cache
def _server() -> ForkServerContext:
    """There is one to a process of tests: who was here first, for a benchmark and with other modules, goes."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # what CPython keeps for its own tests
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(BEFORE)
    return context


def _enter(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """The beginning of a process, which ends when the server does: with whoever runs the tests."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setsid()
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.path.insert(0, str(ROOT))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Forked:
    """One process, with the verbs of `subprocess.Popen` that tests need."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._process: ForkServerProcess = _server().Process(
            target=_enter, args=(module, list(arguments), dict(environment), log)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def state(self) -> str:
        """One letter of the kernel's: `T` is stopped. Empty for one that is gone."""
        try:
            return (Path("/proc") / str(self.pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Exit status. Raises `TimeoutError`."""
        self._process.join(seconds)
        status = self._process.exitcode
        if status is None:
            raise TimeoutError
        return status

    def send_signal(self, signum: int) -> None:
        """To it, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def crew(world: int, module: str, arguments: Sequence[str], folder: Path) -> list[Forked]:
    """The ranks of one program, with the environment that torchrun gives them; each logs to `folder/rank-….log`."""
    peers = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Forked(
            module,
            arguments,
            {**os.environ, **peers, "RANK": str(n), "LOCAL_RANK": str(n), "OMP_NUM_THREADS": "1"},
            folder / f"rank-{n}.log",
        )
        for n in range(world)
    ]
