r"""Intervals that are written as inequalities, and the other way round: the numbers that an answer describes.

Invariant: relations count as a set of numbers only if they bound one name on its own, the same on both sides; two
numbers between round brackets may be a point, and are an interval only where the other side leaves no doubt. Refuses to
know how numbers are compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from producer.verifiers.latex import squeezed
from producer.verifiers.number import read_number
from producer.verifiers.sameness import same
from producer.verifiers.things import REALS, Thing, is_name, thing

LOWEST, HIGHEST = thing("-\\infty"), thing("\\infty")
CLOSED = {"<": False, "\\le": True}
WITHOUT = re.compile(r"(.*?)\s*(?:\\setminus|\\backslash|-)\s*(\\\{.*\\\})")


@dataclass(frozen=True)
class Described:
    """`numbers` (an interval or a union) are those that `name` may be; a bare interval has no name."""

    numbers: Thing
    name: Thing | None = None

    def agrees(self, other: Described) -> bool:
        """On the name and the numbers."""
        one_name = self.name is None or other.name is None or same(self.name, other.name)
        return one_name and same(self.numbers, other.numbers)


def same_numbers(gold: Thing, value: Thing) -> bool:
    """One of them says by relations what the other says by intervals."""
    if (wanted := described(gold)) is not None:
        found = described(value) or _bare(spanned(value, doubtful=True))
        return found is not None and wanted.agrees(found)
    described_value, bare = described(value), _bare(spanned(gold))
    return described_value is not None and bare is not None and bare.agrees(described_value)


def described(said: Thing) -> Described | None:
    """The interval or union that relations describe; None for what is none of numbers."""
    if said.kind == "list" and said.sign:
        return _joined(said)
    if said.kind == "one":
        return _bare(_excepted(said.text))
    if said.kind != "relation":
        return None
    if said.sign == "\\in":
        name, where = said.parts[0], said.parts[-1]
        numbers = _excepted(where.text) or spanned(where, doubtful=True)
        return Described(numbers, name) if numbers and is_name(name) and len(said.parts) == 2 else None
    return _excluded(said) if said.sign == "\\ne" else _bounded(said)


def spanned(said: Thing, doubtful: bool = False) -> Thing | None:
    """The interval or union that it is; `doubtful`: also two numbers between round brackets."""
    if said.kind == "union":
        sets = [spanned(part, doubtful=True) for part in said.parts]
        return Thing("union", "", tuple(s for s in sets if s is not None)) if all(sets) else None
    if said.kind == "interval":
        return said
    pair = said.kind == "tuple" and len(said.parts) == 2 and (doubtful or said.sign == "[]")
    return Thing("interval", "", said.parts, said.sign) if pair else None


def interval(low: Thing, high: Thing, brackets: str) -> Thing:
    """From `low` to `high`."""
    return Thing("interval", "", (low, high), brackets)


def _bare(numbers: Thing | None) -> Described | None:
    return None if numbers is None else Described(numbers)


def _joined(said: Thing) -> Described | None:
    """What several relations say of one name."""
    parts = [part for part in map(described, said.parts) if part is not None]
    if len(parts) < len(said.parts) or any(part.name is None for part in parts):
        return None
    name = parts[0].name
    if not all(name and part.name and same(name, part.name) for part in parts):
        return None
    if said.sign == "or":
        return Described(Thing("union", "", tuple(part.numbers for part in parts)), name)
    if all(part.sign == "\\ne" for part in said.parts):
        left = _all_but([_excluded_number(part) for part in said.parts])
        return None if left is None else Described(left, name)
    return _between(parts[0], parts[1]) if len(parts) == 2 else None


def _between(one: Described, other: Described) -> Described | None:
    """A lower bound and an upper one; None for what is anything else."""
    for below, above in ((one, other), (other, one)):
        low, high = below.numbers, above.numbers
        if low.kind == high.kind == "interval" and low.parts[1] == HIGHEST and high.parts[0] == LOWEST:
            if LOWEST in low.parts or HIGHEST in high.parts:
                return None
            return Described(interval(low.parts[0], high.parts[1], low.sign[0] + high.sign[1]), one.name)
    return None


def _bounded(said: Thing) -> Described | None:
    items, signs = _chain(said)
    if not all(sign in CLOSED for sign in signs):
        return None
    left, right = ("[" if CLOSED[signs[0]] else "("), ("]" if CLOSED[signs[-1]] else ")")
    named = [number for number, item in enumerate(items) if is_name(item)]
    if len(items) == 3 and named == [1]:
        return Described(interval(items[0], items[2], left + right), items[1])
    if len(items) == 2 and named == [0]:
        return Described(interval(LOWEST, items[1], "(" + right), items[0])
    return Described(interval(items[0], HIGHEST, left + ")"), items[1]) if len(items) == 2 and named == [1] else None


def _excluded(said: Thing) -> Described | None:
    """All numbers but one, or but those of a list."""
    name = next(filter(is_name, said.parts), None)
    number = _excluded_number(said)
    left = _all_but(number.parts if number.kind == "list" else [number])
    return Described(left, name) if name and left and not is_name(number) and len(said.parts) == 2 else None


def _excluded_number(said: Thing) -> Thing:
    return said.parts[1] if is_name(said.parts[0]) else said.parts[0]


def _excepted(text: str) -> Thing | None:
    r"""\mathbb{R} \setminus \{1\}."""
    match = WITHOUT.fullmatch(text)
    return _all_but(thing(match[2]).parts) if match and squeezed(match[1]) in REALS else None


def _all_but(numbers: Sequence[Thing]) -> Thing | None:
    """In the order of the numbers; several that cannot be read as such have none."""
    values = [read_number(number.text) for number in numbers]
    if len(numbers) > 1:
        known = {value: number for value, number in zip(values, numbers, strict=True) if value is not None}
        if len(known) < len(numbers):
            return None
        numbers = [known[value] for value in sorted(known)]
    ends = [LOWEST, *numbers, HIGHEST]
    return Thing("union", "", tuple(interval(a, b, "()") for a, b in pairwise(ends)))


def _chain(said: Thing) -> tuple[list[Thing], list[str]]:
    """What stands between the signs, and the signs."""
    items, signs = list[Thing](), list[str]()
    for number, part in enumerate(said.parts):
        signs += [said.sign] if number else []
        inner, more = _chain(part) if part.kind == "relation" else ([part], [])
        items += inner
        signs += more
    return items, signs
