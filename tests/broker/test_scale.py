"""The number of generators in a run's folder: written whole, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.run_folder import RunFolder
from broker.scale import want, wanted


def test_what_was_wanted_last_counts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert wanted(folder) is None, "nobody has said"
    for count in (3, 0):
        want(folder, count)
        assert wanted(folder) == count


@pytest.mark.parametrize("text", [b"", b"three", b"-1", b"1.5", b"99999", b"\xff", b"1\n2", "٣".encode()])
def test_what_is_no_number_is_none(tmp_path: Path, text: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.generators.write_bytes(text)
    assert wanted(folder) is None
