"""What a function returned, as text and back; and when two values are the same."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal

import pytest

from producer.sandbox.literals import LONGEST, read, same, written


class Colour(enum.IntEnum):
    RED = 3


class Shouting(str):
    def __str__(self) -> str:
        return "forged"

    __repr__ = __str__


class Chameleon(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


Point = namedtuple("Point", "x y")
PLAIN: tuple[object, ...] = (
    *(None, True, 0, -7, 10**60, 1.5, -0.0, 1e300, float("inf"), float("-inf"), 2j, complex(-1, -0.0)),
    *("", "a'\n\"é\ud800"),
    *(b"\x00a", [], [1, [2]], (), (1,), (1, (2, "x")), {1, 2}, set(), {"a": [1], (1, 2): {3}}, {None: True}),
)  # fmt: skip
DERIVED: tuple[tuple[object, object], ...] = (
    *((Colour.RED, 3), (Shouting("said"), "said"), (Chameleon(4), 4), (bytearray(b"a"), b"a"), (frozenset("a"), {"a"})),
    *((deque([1]), [1]), (Point(1, 2), (1, 2)), (Counter("aa"), {"a": 2}), (OrderedDict(b=1, a=2), {"a": 2, "b": 1})),
    *((defaultdict(list, {1: [2]}), {1: [2]}), ([Colour.RED], [3])),
)
NESTED: list[object] = []
for _ in range(60):
    NESTED = [NESTED]
ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_a_literal_comes_back_as_it_was(value: object) -> None:
    text = written(value)
    assert text.isascii()
    assert "\n" not in text
    assert (read(text), type(read(text))) == (value, type(value))


@pytest.mark.parametrize(("value", "plain"), DERIVED, ids=repr)
def test_a_subclass_counts_as_what_it_derives_from(value: object, plain: object) -> None:
    got = read(written(value))
    assert (got, type(got)) == (plain, type(plain))


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), [float("nan")], complex("nan"), object(), len, range(3), Decimal(1), {1: object}),
        *({frozenset()}, NESTED, ENDLESS, "x" * (LONGEST + 1), [0] * LONGEST, 10**5000, iter([1]), ...),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_rest_has_no_text_that_can_be_read(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(written(value))


def test_equal_values_have_one_text() -> None:
    assert written({3, 1, 2}) == written({2, 3, 1})
    assert written({"b": 1, "a": 2}) == written({"a": 2, "b": 1})


BOMBS = ("-" * 40_000 + "1", "1+" * 20_000 + "1", "[" * 40_000, "f" + "()" * 20_000, "2**" * 10_000 + "2", "9" * 40_000)
STRANGE = ("", "x", "1 2", "f()", "__import__('os')", "[i for i in (1,)]", "1 if 1 else 2", "\x00", "{[]: 1}", "1;2")


@pytest.mark.parametrize("text", [*BOMBS, *STRANGE, "1," * LONGEST], ids=lambda text: text[:12])
def test_what_is_no_literal_is_refused_whatever_it_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


SAME: tuple[tuple[object, object], ...] = (
    *((0.15, 0.15000000000000002), (1, 1.0), (True, 1), ([1.0, (0.3,)], [1, (0.1 + 0.2,)]), (1e999, 1e999)),
    *(({"a": 0.3}, {"a": 0.1 + 0.2}), ({1, 2}, {1.0, 2.0}), (2j, 2j), (10**400, 10**400), (None, None)),
)
OTHER: tuple[tuple[object, object], ...] = (
    *((1.0, 1.0001), (0.0, 1e-8), (1, 2), (10**20, 10**20 + 1), ((1,), [1]), ([1, 2], [1]), ([1, 2], [2, 1])),
    *(({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 1, "b": 2}), ("1", 1), (None, False), (1e999, -1e999), (10**400, 1.0)),
    *((0, ""), ({1}, {1: 1}), ([[1]], [[2]]), ("é", "é".encode())),
    *((3, 1.7e308 + 1.7e308j), (0.5, 1.7e308 + 1.7e308j), (1j, 1.7e308 + 1.7e308j), (1j, 1.7e308 - 1j)),
)


@pytest.mark.parametrize(("wanted", "got"), SAME, ids=str)
def test_the_same(wanted: object, got: object) -> None:
    assert same(wanted, got)
    assert same(got, wanted)


@pytest.mark.parametrize(("wanted", "got"), OTHER, ids=str)
def test_not_the_same(wanted: object, got: object) -> None:
    assert not same(wanted, got)
    assert not same(got, wanted)


def test_a_tolerance_is_for_what_is_wanted_as_a_float() -> None:
    assert not same(10_000_000_001, 1e10)
    assert not same([10_000_000_001], [1e10])
    assert same(1e10, 10_000_000_001)
    assert same(5, 5.0)
    assert same(True, 1.0)


def test_a_complex_number_is_nothing_but_complex() -> None:
    assert same(3 + 0j, 3)
    assert not same(3, 3 + 0j)
    assert not same(3.0, 3 + 0j)
    assert same(1 + 2j, 1 + 2.0000000000001j)
