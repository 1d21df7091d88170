"""How findings are told: every round counts, the median decides, and a leg's table has a place on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import LEGS, ON_GPU, PAGE, replaced
from benchmarks.findings import Finding, Leg, ratios

FASTER = Finding("ours", (1.0, 3.0, 2.0), least=2.0, note="of what")


@pytest.mark.parametrize(
    ("least", "most", "met"),
    [(None, None, None), (2.0, None, True), (2.1, None, False), (None, 1.9, False), (1, 2, True)],
)
def test_the_median_decides(least: float | None, most: float | None, met: bool | None) -> None:
    assert Finding("ours", (1.0, 9.0, 2.0), least=least, most=most).met is met


def test_a_row_tells_spread_rounds_and_what_was_asked_for() -> None:
    assert FASTER.row() == "| ours | **2.00×** | 1.00× – 3.00× | 3 | ≥ 2.00× | yes | of what |"
    assert "**no**" in Finding("ours", (1.0,), most=0.5).row()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    leg = Leg("transport", "a machine", (FASTER,), "said of it")
    leg.write(tmp_path / "leg.json")
    assert Leg.read(tmp_path / "leg.json") == leg
    assert leg.markdown().startswith("## transport\n\na machine:\n")
    assert leg.markdown().endswith("\nsaid of it\n")


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == (2.0, 3.0)


def test_the_page_has_one_place_for_each_leg() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for key in (*LEGS, *(f"{name} gpu" for name in ON_GPU)):
        changed = replaced(page, key, "a new table")
        assert "a new table" in changed
        assert replaced(changed, key, "another") == replaced(page, key, "another")
    with pytest.raises(ValueError, match="0 places"):
        replaced(page, "nothing", "")
