"""The verifier pool: scores a group of completions in worker processes that can be killed.

Invariant: `verify` returns one verdict per completion, in order, within a bounded time, whatever a completion does to
its verifier: one that hangs past the limit or brings its worker down costs itself (reward 0, `failed`), nobody else.
Refuses to know what a verifier computes, and runs none of them in this process.

A worker answers completion by completion, so the one it hung on is known without trying again. A worker that dies is
first taken for a victim (of the kernel's memory killer, say): the completion gets one fresh worker before it is blamed.
Plain child processes rather than a pool library: nothing of the parent is inherited (threads, CUDA, `__main__`),
nothing is pickled, no helper process or semaphore stays behind, and losing an idle worker breaks nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from broker.errors import Malformed
from producer.tasks.base import Problem, Scoring, Verdict
from producer.verify_lines import MAX_REASON, decode_answer, decode_greeting, encode_request

__all__ = ["Verdict", "VerifierPool"]

LAUNCH_SECONDS = 120.0  # a worker that has not imported its verifier by then never will
INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")  # no passwords beside model-made text
DIED = "the verifier's process died"
MOST_BYTES = 1 << 16  # read at once; a longer answer is none
OVERSPENT = "the verifier used up its processor time"

log = structlog.get_logger("verifiers")

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class VerifierPool:
    """`workers` processes that apply the `scorings` of a task's parts, `seconds` of wall clock for each completion."""

    def __init__(self, scorings: Sequence[Scoring], workers: int = 1, seconds: float = 5.0) -> None:
        self._workers = [_Worker(scorings, seconds) for _ in range(workers)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()  # the one used last is the warmest
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def start(self) -> None:
        """Launch every worker now, not at the first group. Raises `RuntimeError` if the verifier cannot be loaded."""
        await asyncio.gather(*(worker.launch() for worker in self._workers))
        if open_to := next((worker.network for worker in self._workers if worker.network), ""):
            log.warning("verifiers can reach the network", reason=open_to)
        else:
            log.info("verifiers have no network", workers=len(self._workers))

    async def verify(self, problem: Problem, texts: Sequence[str]) -> list[Verdict]:
        """The verdicts on `texts`, in order. Waiting for a worker, or for a new one to start, is not on their clock."""
        verdicts: list[Verdict] = []
        worker = await self._idle.get()
        try:
            victim = -1
            while len(verdicts) < len(texts):
                reason = await worker.score(problem, texts[len(verdicts) :], verdicts)
                if reason == DIED and victim != len(verdicts):
                    victim = len(verdicts)
                elif reason:
                    verdicts.append(Verdict(0.0, {"failed": 1.0}, reason))
        except BaseException:
            worker.kill()  # it may still owe answers that the next group would take for its own
            raise
        finally:
            self._idle.put_nowait(worker)
        return verdicts

    async def stop(self) -> None:
        """End every worker for good; no process is left. Groups still being verified raise `RuntimeError`."""
        for worker in self._workers:
            worker.retired = True
            worker.kill()


class _Worker:
    """One child process, launched when it is needed, and the socket to it."""

    def __init__(self, scorings: Sequence[Scoring], seconds: float) -> None:
        self.retired = False
        self.network = ""  # why the process could still reach one
        self._scorings, self._seconds = scorings, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: _Streams | None = None

    async def score(self, problem: Problem, texts: Sequence[str], verdicts: list[Verdict]) -> str:
        """Append the verdicts on `texts`; stops early with the reason why the next one cannot be had."""
        if self._process is None or self._streams is None or self._process.poll() is not None:
            self._streams = await self.launch()
        reader, writer = self._streams
        wanted, rest = len(verdicts) + len(texts), b""
        try:
            writer.write(encode_request(problem, texts))
            while len(verdicts) < wanted:
                async with asyncio.timeout(self._seconds):
                    await writer.drain()
                    answers = await reader.read(MOST_BYTES)  # of as many completions as are judged by now
                if not answers:
                    raise ConnectionResetError
                *lines, rest = (rest + answers).split(b"\n")
                if len(rest) > MOST_BYTES:
                    raise Malformed("a line without end")
                left = wanted - len(verdicts)
                for line in lines[:left]:
                    verdicts.append(decode_answer(line + b"\n"))
                if len(lines) > left or (len(lines) == left and rest):
                    self.kill()  # it has said more than it was asked, which would be taken for the next group's
        except TimeoutError:
            self.kill()
            return f"the verifier ran for more than {self._seconds:g} s"
        except ConnectionError:
            return OVERSPENT if self.kill() == -signal.SIGXCPU else DIED
        except (Malformed, ValueError) as error:  # a verifier has the worker's own socket, if it looks for it
            self.kill()
            return f"the verifier's process answered with something else than a verdict ({error})"[:MAX_REASON]
        return ""

    async def launch(self) -> _Streams:
        """Start the process and wait until it has loaded its verifier. Raises `RuntimeError` if it cannot."""
        if self.retired:
            raise RuntimeError("the verifier pool has been stopped")
        self.kill()
        ours, theirs = socket.socketpair()
        with theirs:
            named = json.dumps([[s.verifier, dict(s.options)] for s in self._scorings])
            self._process = subprocess.Popen(
                [sys.executable, "-m", "producer.verify_worker", named, str(self._seconds)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # parsers complain there about every malformed answer of a model
                env=_environment(),
                start_new_session=True,  # killed as a group, with whatever a verifier started
            )
        try:
            async with asyncio.timeout(LAUNCH_SECONDS):
                self._streams = reader, _ = await asyncio.open_connection(sock=ours)
                greeting = await reader.readline()
        except BaseException:
            self.kill()
            raise
        try:
            reason, self.network = decode_greeting(greeting)
        except Malformed:
            reason = DIED
        if reason:
            self.kill()
            raise RuntimeError(f"cannot start the verifier {', '.join(s.verifier for s in self._scorings)}: {reason}")
        return self._streams

    def kill(self) -> int | None:
        """End the process and everything it started, and reap it: after SIGKILL that is a matter of milliseconds.

        Returns how it ended, None if there was none.
        """
        status = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
                os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
        if self._streams is not None:
            self._streams[1].close()
        self._process = self._streams = None
        return status


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
