"""Asserts become calls with literal arguments, or are refused; nothing of them is run."""

import pytest

from producer.tasks.asserts import Call, read_asserts


def test_kinds_of_values_survive_the_reading() -> None:
    calls = read_asserts(["assert f((1, 2), {3}) == (1.5, None)", "assert f() == [-1]"])
    assert calls == [Call("f", "((1, 2), {3})", "(1.5, None)"), Call("f", "()", "[-1]")]


@pytest.mark.parametrize(
    "test",
    [
        "assert f(g(1)) == 2",
        "assert f(1) == h",
        "assert f(1) != 2",
        "assert f(1)",
        "assert f(x=1) == 2",
        "assert f(1) == 2; import os",
        "assert a.f(1) == 2",
        "assert f(*[1]) == 2",
        "assert f(1) == (",
    ],
)
def test_what_is_no_literal_call_is_refused_by_its_text(test: str) -> None:
    with pytest.raises(ValueError, match="cannot read the test"):
        read_asserts([test])


@pytest.mark.parametrize("several", [[], ["assert f(1) == 1", "assert g(1) == 1"]])
def test_the_tests_of_a_problem_call_one_function(several: list[str]) -> None:
    with pytest.raises(ValueError, match="exactly one function"):
        read_asserts(several)
