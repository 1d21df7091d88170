"""A run in the background, with as many generators as somebody asks for: from one to two, to none, and on again."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import pytest
import redis as redis_library

from broker.connection import connect
from broker.joining import alive
from broker.keys import Keys
from broker.ledger import Ledger
from broker.run_folder import RunFolder
from broker.scale import wanted
from broker.settings import BrokerSettings, redis_url
from deploy.prepare import prepare
from deploy.recipe import read
from tests.deploy.test_launcher import Launch, all_accounted_for, all_gone, records
from tests.ports import free_port
from tests.system.pipeline import wait_until

KEYS = Keys("tiny")


class Scale(Launch):
    """`make scale`."""

    module = "deploy.scale"


class Background:
    """A run that was started with `--detach`, and what else is done to it."""

    def __init__(self, directory: Path, model: Path, *flags: str) -> None:
        self.directory, self.model, self.folder = directory, model, RunFolder(directory / "tiny")
        self.start = self.ended(Launch, "--detach", *flags)
        pid = self.folder.launcher()
        assert pid, self.start
        self.launcher = psutil.Process(pid)

    def ended(self, kind: type[Launch], *flags: str) -> str:
        """What a command said until its end."""
        with kind(self.directory, self.model, *flags) as command:
            command.end()
            return command.said

    def scale(self, count: int | str) -> str:
        return self.ended(Scale, f"--count={count}")

    @property
    def family(self) -> list[psutil.Process]:
        return self.launcher.children(recursive=True) if self.launcher.is_running() else []

    @property
    def generators(self) -> list[str]:
        """Their ports."""
        found = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that is gone, or just going
                found += process.cmdline()[-1:] if "producer" in process.cmdline() else []
        return sorted(found)

    @property
    def said(self) -> str:
        return self.folder.log("launcher").read_text()

    def client(self) -> redis_library.Redis:
        return connect(BrokerSettings(), redis_url(read(self.folder.recipe).broker))

    @property
    def steps(self) -> int:
        return max((record["step"] for record in records(self.folder) if "step" in record), default=0)

    def goes_on(self) -> None:
        """It does, for two steps."""
        goal = self.steps + 2
        wait_until(lambda: self.steps >= goal or not self.launcher.is_running(), f"step {goal} is done")
        assert self.launcher.is_running(), self.said

    def end(self) -> None:
        """Whatever became of it."""
        for process in [*self.family, self.launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def run(tmp_path: Path, port: int) -> Iterator[Background]:
    model = prepare("random:llama-tiny", tmp_path / "models")
    made = Background(tmp_path, model, "--run.steps", "100000", "--monitoring.generator_port", str(port))
    yield made
    made.end()


def test_generators_come_and_go_and_no_group_is_lost(run: Background, port: int) -> None:
    assert "tiny has been started and goes on in the background" in run.start
    run.goes_on()
    with run.client() as client:

        def live() -> int:
            return alive(cast("dict[bytes, bytes]", client.hgetall(KEYS.generators)), time.time())

        with socket.create_server(("127.0.0.1", port + 1)):  # what generator 1 would need
            assert "has 2 generators from now on, 1 more" in run.scale(2)
            wait_until(lambda: "; generators from now on: 1" in run.said, "it is said why there is no second")
        assert f"cannot serve metrics on 127.0.0.1:{port + 1}" in run.said
        assert wanted(run.folder) == 1

        assert "has 2 generators from now on, 1 more" in run.scale(2)
        wait_until(lambda: live() == 2, "both serve")
        assert [str(port), str(port + 1)] == run.generators

        assert "has 0 generators from now on, 2 fewer" in run.scale(0)
        wait_until(lambda: live() == 0 and not run.generators, "both have signed off and gone")
        balance = Ledger(client, KEYS).balance()
        assert balance.balanced, balance
        assert balance.verdicts.get("failed", 0) == 0

        assert "has 1 generator from now on, 1 more" in run.scale(1)
        run.goes_on()
    family = run.family
    assert run.ended(Launch, "--stop") == f"stopped {run.folder.path}\n"
    assert all_gone(family)
    all_accounted_for(run.folder)
    assert "stopped; the same command goes on with" in run.said


def test_what_cannot_be_scaled_is_one_line(tmp_path: Path) -> None:
    """And neither can what is not running."""
    for count, line in (
        ("3", f"headrace: nothing runs in {tmp_path / 'tiny'}: `make up DETACH=1` starts it\n"),
        ("three", "headrace: N is 'three' and must be a number from 0 to 9999: `make scale N=3`\n"),
        ("-1", "headrace: N is '-1' and must be a number from 0 to 9999: `make scale N=3`\n"),
        ("", "headrace: N is '' and must be a number from 0 to 9999: `make scale N=3`\n"),
    ):
        with Scale(tmp_path, "m", f"--count={count}") as scale:
            assert scale.end() == 2
            assert scale.said == line


def test_a_start_in_the_background_that_is_refused_says_so_before_it_returns(tmp_path: Path) -> None:
    with Launch(tmp_path, "/no/such/model", "--detach") as launch:
        assert launch.end() == 2
        assert launch.said.splitlines() == [
            "headrace: no model directory /no/such/model: give a directory that exists, or a hub name"
        ]
    assert launch.folder.launcher() is None
