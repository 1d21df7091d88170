"""The README names tests: each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from consumer.objective.table import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", README))))
def test_a_test_that_is_named_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE)


def test_what_survives_what_names_a_test_in_every_row() -> None:
    section = README.split("## What survives what")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| what happens")]
    assert len(rows) > 10
    assert all(re.search(r"`tests/[\w/]+\.py::\w+` \|$", row) for row in rows)


def test_the_table_of_presets_is_the_code_s() -> None:
    assert markdown() in README
