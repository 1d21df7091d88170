"""A dozen cells of the crash matrix; all of them: `make crash-matrix`, benchmarks/crash-matrix.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.crash import MODES, Event, Weights, play
from tests.system.crash_matrix import (
    FREIGHT,
    GENERATOR,
    LEARNER,
    REBUILDING,
    REPLAYING,
    STRATIFIED,
    events,
)
from tests.system.processes import ROOT


@pytest.fixture(scope="session")
def undisturbed(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """The weights at the end of runs to which nothing happened."""
    root = tmp_path_factory.mktemp("undisturbed")
    return {
        mode: play(root / str(number), taught, None, mode, None).weights
        for number, mode in enumerate(MODES)
        if mode.startswith("strict")
    }


@pytest.mark.parametrize("event", STRATIFIED, ids=lambda event: event.label)
def test_it_goes_on_by_itself_and_nothing_is_lost(
    taught: Path, undisturbed: dict[str, Weights], tmp_path: Path, event: Event
) -> None:
    play(tmp_path / "run", taught, event, event.mode, undisturbed.get(event.mode))


def test_the_matrix_has_a_row_for_every_point_there_is() -> None:
    code = [path.read_text() for room in ("broker", "producer", "consumer") for path in (ROOT / room).rglob("*.py")]
    points = {piece.split('"')[0] for text in code for piece in text.split('reached("')[1:]}
    pruned = {"policy.pruning", "freight.retired"}  # nothing is, in these runs: tests/broker/test_polic*.py
    assert points - pruned == {*LEARNER, *GENERATOR, *FREIGHT, *REBUILDING, *REPLAYING}
    assert len(set(events())) >= 25
