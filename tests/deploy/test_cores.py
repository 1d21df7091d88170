"""Processes of one machine do not keep each other from its cores."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cores import SPINS, sharing
from deploy.launcher import Launcher
from deploy.recipe import read
from deploy.role import main

TINY = "recipes/tiny.toml"


def test_a_thread_that_waits_soon_sleeps_unless_somebody_wants_it_to_spin() -> None:
    assert sharing({"A": "b"}) == {"A": "b", "GOMP_SPINCOUNT": SPINS}
    assert int(SPINS) < 100_000, "libgomp's own is 300,000 or more"
    assert sharing({"GOMP_SPINCOUNT": "7"}) == {"GOMP_SPINCOUNT": "7"}


def test_so_it_is_for_all_that_the_launcher_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    recipe = read(Path(TINY), ["--run.directory", str(tmp_path)])
    assert Launcher(recipe).environment["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert Launcher(recipe).environment["GOMP_SPINCOUNT"] == SPINS


@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_and_for_one_process_in_a_terminal_of_its_own(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = list[tuple[Any, ...]]()
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(sys, "argv", ["role", role, TINY, "--check"])
    monkeypatch.setattr(os, "execve", lambda *what: entered.append(what))
    main()
    ((program, arguments, environment),) = entered
    assert (program, arguments[1:]) == (sys.executable, ["-m", role, TINY, "--check"])
    assert environment == {**os.environ, "GOMP_SPINCOUNT": SPINS}


def test_and_for_these_tests() -> None:
    """Three processes and what they start, on two cores; two threads each, of torch or numpy, only get in their way."""
    assert dict(os.environ) == sharing(os.environ)
    assert os.environ["OMP_NUM_THREADS"]
