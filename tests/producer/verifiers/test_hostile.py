"""Completions that want a reward without the answer: none has one, and nobody else waits for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from producer.tasks import Scoring, Verdict
from producer.verify import VerifierPool
from tests.producer.verifiers.hostile import BOX, HOSTILE, PROBLEM

FORMATS = {"answer": ["boxed"]}
SECONDS = 5.0
GOOD = BOX % "18"


def verdicts(verifier: str, texts: list[str]) -> tuple[list[Verdict], set[int]]:
    """Through a real pool of one worker, and the processes that were there meanwhile."""

    async def run() -> tuple[list[Verdict], set[int]]:
        others = {child.pid for child in psutil.Process().children(recursive=True)}
        pool = VerifierPool([Scoring(f"producer.verifiers.{verifier}:score", FORMATS)], 1, SECONDS)
        await pool.start()
        try:
            found = await pool.verify(PROBLEM, texts)
            return found, {child.pid for child in psutil.Process().children(recursive=True)} - others
        finally:
            await pool.stop()

    return asyncio.run(run())


@pytest.mark.parametrize("verifier", ["numeric", "symbolic"])
def test_none_scores_and_each_costs_its_neighbours_nothing(
    verifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # which workers inherit
    before = set(Path.cwd().iterdir())
    texts = [text for hostile in HOSTILE.values() for text in (hostile, GOOD)]
    found, pids = verdicts(verifier, texts)
    names = list(HOSTILE)
    assert [name for name, verdict in zip(names, found[::2], strict=True) if verdict.reward] == []
    assert [name for name, verdict in zip(names, found[1::2], strict=True) if verdict.reward != 1.0] == []
    assert set(Path.cwd().iterdir()) == before
    assert not list(tmp_path.iterdir())
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    slow = [name for name, verdict in zip(names, found[::2], strict=True) if verdict.failed]
    assert len(slow) <= 3, slow  # the kill is the last resort, not the rule


def test_the_list_is_as_long_as_it_is_said_to_be() -> None:
    assert len(HOSTILE) >= 60
