"""Programs that want a reward without the answer: none has one, nothing is left of them, and nobody else waits."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from producer.tasks import Scoring, Verdict
from producer.verify import VerifierPool
from tests.producer.sandbox.available import needs_lock
from tests.producer.verifiers.programs import GOOD, HOSTILE, PROBLEM

SECONDS = 1.0
SCORING = Scoring("producer.verifiers.code:score", {"seconds": SECONDS})


def verdicts(texts: list[str]) -> tuple[list[Verdict], list[psutil.Process]]:
    """Through a real pool of one worker, and the processes below it when all were scored."""

    async def run() -> tuple[list[Verdict], list[psutil.Process]]:
        others = set(psutil.Process().children(recursive=True))
        pool = VerifierPool([SCORING], 1, seconds=10.0)
        await pool.start()
        try:
            found = await pool.verify(PROBLEM, texts)
            return found, [p for p in psutil.Process().children(recursive=True) if p not in others]
        finally:
            await pool.stop()

    return asyncio.run(run())


@needs_lock
def test_none_scores_and_each_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(PROBLEM.gold)
    before = set(Path.cwd().iterdir())
    facts = {"TRACE": str(tmp_path / "trace"), "ANSWERS": str(answers), "PARENT": str(os.getpid())}
    texts = [text for hostile in HOSTILE.values() for text in (_filled(hostile, facts), GOOD)]
    found, processes = verdicts(texts)
    names = list(HOSTILE)
    assert [name for name, verdict in zip(names, found[::2], strict=True) if verdict.reward] == []
    assert [name for name, verdict in zip(names, found[1::2], strict=True) if verdict.reward != 1.0] == []
    assert [name for name, verdict in zip(names, found[::2], strict=True) if verdict.failed] == [], "no worker was lost"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    assert set(Path.cwd().iterdir()) == before
    assert len(processes) == 2, "the worker and the nursery: no candidate is left, dead or alive"
    _, left = psutil.wait_procs(processes, timeout=10)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def _filled(text: str, facts: dict[str, str]) -> str:
    for name, fact in facts.items():
        text = text.replace(name, fact)
    return text


def test_the_list_is_as_long_as_it_is_said_to_be() -> None:
    assert len(HOSTILE) >= 100
