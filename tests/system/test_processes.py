"""Forked processes begin with what they would otherwise import for seconds."""

from __future__ import annotations

from pathlib import Path

from tests.system.processes import BEFORE, Forked


def test_all_that_is_to_be_imported_before_a_process_is_there(tmp_path: Path) -> None:
    process = Forked("tests.system.imported", [], {}, log := tmp_path / "log")
    assert process.wait(120) == 0, log.read_text()
    assert set(BEFORE) <= set(log.read_text().split())
