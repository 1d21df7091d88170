"""Programs that want a reward without the answer: none has one, nothing is left of them, and nobody else waits."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from producer.sandbox.box import BOOT
from producer.tasks import Scoring, Verdict
from producer.verify import VerifierPool
from tests.producer.sandbox.available import needs_lock
from tests.producer.verifiers.programs import GOOD, HOSTILE, PROBLEM

SECONDS = 1.0
SCORING = Scoring("producer.verifiers.code:score", {"seconds": SECONDS})


def verdicts(scoring: Scoring, texts: list[str], seconds: float) -> tuple[list[Verdict], list[psutil.Process]]:
    """Through a real pool of one worker, and the processes below it when all were scored."""

    async def run() -> tuple[list[Verdict], list[psutil.Process]]:
        others = set(psutil.Process().children(recursive=True))
        pool = VerifierPool([scoring], 1, seconds)
        await pool.start()
        try:
            found = await pool.verify(PROBLEM, texts)
            return found, [p for p in psutil.Process().children(recursive=True) if p not in others]
        finally:
            await pool.stop()

    return asyncio.run(run())


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there; nobody may have reaped an orphan yet."""
    _, left = psutil.wait_procs(processes, timeout=10)
    return [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@needs_lock
def test_none_scores_and_each_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(PROBLEM.gold)
    before = set(Path.cwd().iterdir())
    facts = {"TRACE": str(tmp_path / "trace"), "ANSWERS": str(answers), "PARENT": str(os.getpid())}
    texts = [text for hostile in HOSTILE.values() for text in (_filled(hostile, facts), GOOD)]
    found, processes = verdicts(SCORING, texts, seconds=10.0)
    names = list(HOSTILE)
    assert [name for name, verdict in zip(names, found[::2], strict=True) if verdict.reward] == []
    assert [name for name, verdict in zip(names, found[1::2], strict=True) if verdict.reward != 1.0] == []
    assert [name for name, verdict in zip(names, found[::2], strict=True) if verdict.failed] == [], "no worker was lost"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    assert set(Path.cwd().iterdir()) == before
    assert len(processes) == 2, "the worker and the nursery: no candidate is left, dead or alive"
    assert left_of(processes) == []


@needs_lock
def test_a_program_that_runs_when_its_verifier_is_killed_dies_with_it() -> None:
    """The last resort: the pool's own clock, shorter here than the program's."""
    patient = Scoring("producer.verifiers.code:score", {"seconds": 600.0})
    found, _ = verdicts(patient, [HOSTILE["a deaf loop"], GOOD], seconds=2.0)
    assert [(verdict.reward, bool(verdict.failed)) for verdict in found] == [(0.0, True), (1.0, False)]
    assert left_of([process for process in psutil.process_iter() if _orphan(process)]) == []


def _orphan(process: psutil.Process) -> bool:
    """A nursery, or a child of one, that has survived who asked for it; it has that number on its command line."""
    try:
        *command, asker = process.cmdline() or [""]
    except psutil.Error:  # it has just ended
        return False
    return BOOT in command and not psutil.pid_exists(int(asker))


def _filled(text: str, facts: dict[str, str]) -> str:
    for name, fact in facts.items():
        text = text.replace(name, fact)
    return text


def test_the_list_is_as_long_as_it_is_said_to_be() -> None:
    assert len(HOSTILE) >= 100
