"""A task of the user's own: a file, a class, a static method."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.errors import Refused
from producer.tasks import Problem
from producer.verify import VerifierPool
from tests.producer.tasks.made import made

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
BACKWARDS = README.split("```python\n")[1].split("```")[0]
PAIRS = """
class Pairs:
    train, held_out = [("one?", "1"), ("two?", "2")], []

    @staticmethod
    def score(completion, problem):
        return completion == problem.gold
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(BACKWARDS)
    return file


def test_the_readme_s_example_is_short() -> None:
    assert len(BACKWARDS.splitlines()) < 40


def test_it_is_made_with_its_options_and_scored_in_the_pool(file: Path) -> None:
    task = made(name=f"{file}:Backwards", options={"aside": 2}, held_out=10, reward={"correct": 1, "same_length": 0.1})
    assert (task.name, len(task.train), len(task.held_out)) == ("Backwards", 6, 2)
    assert task.card().components == ("correct", "same_length")

    async def verdicts() -> list[float]:
        pool = VerifierPool([part.scoring for part in task.parts])
        await pool.start()
        try:
            found = await pool.verify(task.train[0], ["maerts", "stream", "no"])
        finally:
            await pool.stop()
        return [v.components["correct"] + v.components["same_length"] for v in found]

    assert asyncio.run(verdicts()) == [2, 1, 0]


def test_pairs_and_a_number_will_do(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(PAIRS)
    task = made(name=f"{tmp_path / 'pairs.py'}:Pairs")
    assert task.train == (Problem("one?", "1"), Problem("two?", "2"))
    assert task.held_out == ()


def test_the_file_is_part_of_what_the_task_is_and_its_place_is_not(tmp_path: Path) -> None:
    cards = []
    for folder, text in (("a", PAIRS), ("b", PAIRS), ("c", PAIRS.replace("==", "!="))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.py").write_text(text)
        cards.append(made(name=f"{tmp_path / folder / 'pairs.py'}:Pairs").card())
    assert cards[0] == cards[1] != cards[2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("class Mine: pass", "Mine.score: AttributeError|has no attribute 'train'"),
        ("1 +", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("class Other: pass", "has no attribute 'Mine'"),
        ("class Mine:\n def __init__(self): raise OSError('gone')", "OSError: gone"),
        ("class Mine:\n train = [('a', 1)]; held_out = []", "train, problem 1 is neither"),
        ("class Mine:\n train = []; held_out = []\n def score(completion, problem): pass", "no problems to train on"),
        ("class Mine:\n train = [('a', 'b')]; held_out = []\n def score(self, c, p): pass", "does not take"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(Refused, match=why) as refusal:
        made(name=f"{tmp_path / 'mine.py'}:Mine")
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no Python file"):
        made(name=f"{tmp_path / 'absent.py'}:Mine")
