"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from monitoring.grafana.units import text


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.1234, "percentunit", "12.3 %"),
        (1.0, "percentunit", "100 %"),
        (0.0, "s", "0 s"),
        (0.0123, "s", "12.3 ms"),
        (75.0, "s", "1.25 min"),
        (7200.0, "s", "2 h"),
        (1536.0, "bytes", "1.5 KiB"),
        (64_000.0, "si:tok/s", "64 ktok/s"),
        (0.5, "si:tok/s", "0.5 tok/s"),
        (1.5e12, "flops", "1.5 TFLOP/s"),
        (12_345.0, "short", "12.3 k"),
        (2.0, "suffix:versions", "2 versions"),
        (1e-6, "sci", "1e-06"),
        (-0.0, "none", "0"),
        (-0.25, "none", "-0.25"),
        (3.2e-9, "none", "3.2e-09"),
        (1234.0, "none", "1234"),
    ],
)
def test_a_value_has_three_digits_and_its_unit(value: float, unit: str, expected: str) -> None:
    assert text(value, unit) == expected


def test_decimals_are_as_many_as_asked_for() -> None:
    assert text(0.5, "none", 3) == "0.500"
    assert text(0.987, "percentunit", 0) == "99 %"


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_what_is_no_number_is_a_dash(nothing: float | None) -> None:
    assert text(nothing, "s") == "–"
