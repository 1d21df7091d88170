"""The view as a person sees it: in tmux, of 80 × 24 and of 200 × 50, compared with screenshots kept as text.

To take a screenshot anew, delete its file and run the test, which then fails once; look at the new one before it is
committed. Lengths of time are shown as zeros in them: they differ from run to run.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from monitoring.metrics import GeneratorMetrics, LearnerMetrics
from tests.monitoring.fabricated import GROUP, Run
from tests.monitoring.scraping import scraping, target
from tests.monitoring.test_endpoints import served
from tests.monitoring.test_watch import consecutive_ports, launch
from tests.monitoring.tmux import Terminal, terminal
from tests.ports import free_port
from tests.system.pipeline import ROOT, wait_until

SCREENS = Path(__file__).parent / "screens"
LENGTH = re.compile(r"\b\d+(\.\d)?(?= (s|min|h)\b)")
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")
MINUTE = 60.0


@dataclass
class Clock:
    """A process's clock that can be put forward, so that it has waited for minutes."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class Story:
    """A run that has gone on for three quarters of an hour, a step a minute, and two generators beside the learner."""

    folder: Path
    steps: int = 12
    ago: float = 0.0  # since the last step
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.learner_port, self.first_port = free_port(), consecutive_ports()
        ports = {"learner_port": self.learner_port, "generator_port": self.first_port}
        sections = {"monitoring": ports, "generator": {"count": 2}}
        self.run = Run(self.folder, steps=45, sections=sections, now=time.time() - self.ago - self.steps * MINUTE)
        self.run.metrics = LearnerMetrics(clock=self.clock)
        self.run.metrics.observe_settings({"steps": 45, "max_staleness": 8, "group_size": GROUP})
        self.run.restart()
        self.generators = [GeneratorMetrics(clock=self.clock) for _ in range(2)]

    def tell(self) -> object:
        """Up to now; the learner has waited for a ticket for twenty minutes, and a generator for a version."""
        hold = launch(self.run, "starting the generators", at=self.run.now - 30 * MINUTE)
        if self.steps:
            self.run.evaluate("start", 0, 0.21)
        for step in range(1, self.steps + 1):
            self.run.plain_step(step, 0.04 * step, ages={0: 100, 1: 300, 2: 60, 4: 5}, seconds=MINUTE, waited=20)
        if self.steps:
            self.run.evaluate("periodic", self.steps, 0.61)
        for number, generator in enumerate(self.generators):
            generator.slots.set(8)
            generator.in_flight_groups.set(5 + number)
            generator.policy_version.set(self.steps - number)
            generator.groups.labels(kind="train").inc(30 + number)
            generator.in_phase.labels(phase="sample").set(8)
        self.run.metrics.waiting("ticket", "t00000038")
        self.generators[1].waiting("version")
        self.clock.ahead = 20 * MINUTE
        return hold

    @property
    def targets(self) -> list[Mapping[str, object]]:
        """Its processes, for a Prometheus."""
        generators = [target("generator", self.first_port + number) for number in range(2)]
        return [target("learner", self.learner_port), *generators]

    @contextmanager
    def served(self) -> Iterator[None]:
        """Its processes answer."""
        one, two = self.generators
        with (
            served(self.run.metrics, self.learner_port),
            served(one, self.first_port),
            served(two, self.first_port + 1),
        ):
            yield


def watch(shell: Terminal, folder: Path, *arguments: str) -> None:
    """A person types the command, behind a name that is as short on every machine."""
    command = shlex.join([sys.executable, "-m", "monitoring.top", *arguments])
    (folder / "top.sh").write_text(f"cd {shlex.quote(str(ROOT))}\nexec {command}\n")
    shell.type("sh top.sh; echo ended with $?", "Enter")


def timeless(rows: Sequence[str]) -> str:
    """With zeros for lengths of time and ports; those of alerts, with nothing on their right, as one figure."""

    def zeros(found: re.Match[str]) -> str:
        return re.sub(r"\d", "0", found[0])

    rows = [LENGTH.sub("0", row) if row.startswith(" alerts") else LENGTH.sub(zeros, row) for row in rows]
    return "\n".join(PORT.sub(zeros, row) for row in rows) + "\n"


def compare(rows: Sequence[str], name: str) -> None:
    """With the screenshot."""
    file, seen = SCREENS / f"{name}.txt", timeless(rows)
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(seen, encoding="utf-8")
        pytest.fail(f"{file} was taken anew: look at it")
    assert seen == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_run_under_way(tmp_path: Path, columns: int, rows: int) -> None:
    story = Story(tmp_path)
    hold = story.tell()
    with story.served(), terminal(tmp_path, columns, rows) as shell:
        watch(shell, tmp_path, str(story.run.folder.recipe))
        screen = shell.shows("11 of 16 slots busy", "ticket t00000038", "0 tok/s     0.00 groups/s", "unknown: no Prom")
        compare(screen, f"under-way-{columns}x{rows}")
    assert hold


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_run_without_a_step(tmp_path: Path, columns: int, rows: int) -> None:
    story = Story(tmp_path, steps=0)
    hold = story.tell()
    with story.served(), terminal(tmp_path, columns, rows) as shell:
        watch(shell, tmp_path, str(story.run.folder.recipe))
        screen = shell.shows("11 of 16 slots busy", "ticket t00000038", "unknown: no Prom")
        compare(screen, f"no-step-{columns}x{rows}")
    assert hold


def test_a_window_that_is_resized_is_drawn_anew(tmp_path: Path) -> None:
    story = Story(tmp_path)
    hold = story.tell()
    with story.served(), terminal(tmp_path, 80, 24) as shell:
        watch(shell, tmp_path, str(story.run.folder.recipe))
        full = ("11 of 16 slots busy", "ticket t00000038", "0 tok/s     0.00 groups/s", "unknown: no Prom")
        small = shell.shows(*full)[1:]  # below the command
        shell.resize(200, 50)
        compare(["$ sh top.sh; echo ended with $?", *shell.shows(*full, " each ", " steps ")], "under-way-200x50")
        shell.resize(80, 24)
        compare(["$ sh top.sh; echo ended with $?", *shell.shows(*full)], "under-way-80x24")
        shell.resize(60, 15)
        shell.shows("headrace", "training", "…")
        shell.resize(80, 24)
        assert timeless(shell.shows(*full)) == timeless(small)
    assert hold


def test_ctrl_c_leaves_the_last_state_and_a_terminal_as_it_was(tmp_path: Path) -> None:
    story = Story(tmp_path)
    hold = story.tell()
    with story.served(), terminal(tmp_path, 80, 24) as shell:
        watch(shell, tmp_path, str(story.run.folder.recipe))
        shell.shows("11 of 16 slots busy", "0 tok/s     0.00 groups/s", "unknown: no Prom")
        assert shell.state == ("0", "0"), "no cursor while it draws"
        shell.type("C-c")
        screen = shell.shows("\nended with 0")
        assert shell.state == ("1", "0")
        assert "   all                24          12           0           0" in screen
        shell.type("echo on it goes", "Enter")
        assert shell.shows("\non it goes")
    assert hold


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_run_of_another_machine_that_has_got_stuck(tmp_path: Path, columns: int, rows: int) -> None:
    story = Story(tmp_path, ago=30 * MINUTE)
    hold = story.tell()
    with (
        story.served(),
        scraping(tmp_path / "p", *story.targets) as server,
        terminal(tmp_path, columns, rows) as shell,
    ):
        wait_until(lambda: len(server.asked.now('ALERTS{alertname="NoStep"}')) == 1, "an alert fires")
        wait_until(lambda: len(server.asked.now("headrace_generator_slots")) == 2, "both generators were scraped")
        watch(shell, tmp_path, "--prometheus", server.service.url, "--run", "demo")
        screen = shell.shows("11 of 16 slots busy", "NoStep", "0 tok/s     0.00 groups/s", "waits for ticket")
        compare(screen, f"afar-{columns}x{rows}")
    assert hold


def test_a_prometheus_on_the_port_of_the_recipe_tells_a_run_of_this_machine_of_alerts(tmp_path: Path) -> None:
    story = Story(tmp_path, ago=30 * MINUTE)
    hold = story.tell()
    with story.served(), scraping(tmp_path / "p", *story.targets) as server, terminal(tmp_path, 80, 24) as shell:
        text = story.run.folder.recipe.read_text()
        story.run.folder.recipe.write_text(text.replace("prometheus_port = 1", f"prometheus_port = {server.port}"))
        watch(shell, tmp_path, str(story.run.folder.recipe))
        screen = shell.shows("alerts     NoStep ")
        compare([row for row in screen if row.startswith(" alerts")], "alert")
    assert hold
