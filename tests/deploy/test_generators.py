"""As many generators as are wanted: who leaves may take its time, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.children import Child
from deploy.generators import LEAVING_SECONDS, Generators
from tests.clock import Clock
from tests.system.pipeline import wait_until

DRAIN = 300.0
# Says each signal, and leaves once the file `go` is there, or at a second signal.
PATIENT = """
asked() { echo asked; trap 'echo hurried; exit 0' TERM; while [ ! -e go ]; do sleep 0.05; done; exit 0; }
trap asked TERM
echo ready
while :; do sleep 0.05; done
"""


class Crew:
    """Generators that are shells; each logs to a file of its number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.generators = Generators(self.make, DRAIN)

    def make(self, number: int) -> Child:
        script = f"cd {self.folder} && {PATIENT}"
        return Child(f"generator {number}", ["/bin/sh", "-c", script], self.log(number), clock=self.clock)

    def log(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def said(self, number: int, word: str, times: int = 1) -> None:
        wait_until(lambda: self.log(number).read_text().split().count(word) == times, f"{number} says {word}", 30)

    def be(self, count: int) -> None:
        self.generators.be(count)

    def become(self, count: int, numbers: tuple[list[int], list[int]]) -> None:
        """Ask for so many again and again, as the launcher does, until these serve and those are leaving."""

        def there() -> bool:
            self.be(count)
            return self.numbers == numbers

        wait_until(there, f"serving and leaving are {numbers}", 30)

    @property
    def numbers(self) -> tuple[list[int], list[int]]:
        return sorted(self.generators.serving), sorted(self.generators.leaving)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path)
    yield made
    made.generators.stop()


def test_the_highest_numbers_leave_and_nobody_waits_for_them(crew: Crew) -> None:
    crew.be(3)
    for number in range(3):
        crew.said(number, "ready")
    crew.be(1)
    assert crew.numbers == ([0], [1, 2])
    for number in (1, 2):
        crew.said(number, "asked")
    crew.clock.now += DRAIN
    crew.be(1)
    assert crew.numbers == ([0], [1, 2]), "they may drain for as long as the recipe says"
    leaving = list(crew.generators.leaving.values())
    (crew.folder / "go").touch()
    crew.become(1, ([0], []))
    assert [child.status for child in leaving] == [0, 0], "by themselves"
    assert "hurried" not in crew.log(1).read_text() + crew.log(2).read_text()
    assert crew.log(0).read_text().split() == ["ready"], "and who stays is left alone"


def test_a_number_comes_back_once_the_one_that_leaves_is_gone(crew: Crew) -> None:
    """It has the port."""
    crew.be(1)
    crew.said(0, "ready")
    crew.be(0)
    crew.said(0, "asked")
    crew.be(1)
    assert crew.numbers == ([], [0])
    (crew.folder / "go").touch()
    crew.become(1, ([0], []))
    crew.said(0, "ready", times=2)


def test_one_that_does_not_leave_in_time_is_killed(crew: Crew) -> None:
    crew.be(1)
    crew.said(0, "ready")
    crew.be(0)
    crew.said(0, "asked")
    crew.clock.now += DRAIN + LEAVING_SECONDS
    crew.become(0, ([], []))
    assert "hurried" not in crew.log(0).read_text()


def test_at_the_end_a_second_signal_says_that_nobody_waits_any_longer(crew: Crew) -> None:
    crew.be(2)
    for number in range(2):
        crew.said(number, "ready")
    crew.be(1)
    crew.said(1, "asked")
    crew.generators.stop()
    for number in range(2):
        assert crew.log(number).read_text().split() == ["ready", "asked", "hurried"]
