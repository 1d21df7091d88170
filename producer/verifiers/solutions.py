r"""Intervals that are written as inequalities, and the other way round: the numbers that an answer describes.

Invariant: a relation counts as a set of numbers only if it bounds one name on its own; two numbers between round
brackets may be a point, and are an interval only where the other side leaves no doubt. Refuses to know how numbers are
compared.
"""

from __future__ import annotations

from producer.verifiers.latex import MARK
from producer.verifiers.things import Thing, is_name, same, split, thing

LOWEST, HIGHEST = thing("-\\infty"), thing("\\infty")
CLOSED = {"<": False, "\\le": True}
OR = rf"{MARK}\s*or\s*{MARK}|\bor\b|\\vee(?![A-Za-z])|\\lor(?![A-Za-z])"


def same_numbers(gold: Thing, value: Thing) -> bool:
    """One of them says by relations what the other says by intervals."""
    if (wanted := described(gold)) is not None:
        found = described(value) or spanned(value, doubtful=True)
        return found is not None and same(wanted, found)
    found, wanted = described(value), spanned(gold)
    return found is not None and wanted is not None and same(wanted, found)


def described(said: Thing) -> Thing | None:
    """The interval or union that relations describe; None for what is none of numbers."""
    if said.kind == "list" and len(parts := split(said.text, "\x01", OR)) == len(said.parts):
        sets = [described(part) for part in map(thing, parts)]
        return Thing("union", "", tuple(s for s in sets if s is not None)) if all(sets) else None
    if said.kind != "relation":
        return None
    if said.sign == "\\in":
        return spanned(said.parts[1], doubtful=True) if is_name(said.parts[0]) else None
    if said.sign == "\\ne":
        return _without(said)
    items, signs = _chain(said)
    if not all(sign in CLOSED for sign in signs):
        return None
    named = [number for number, item in enumerate(items) if is_name(item)]
    if len(items) == 3 and named == [1]:
        return interval(items[0], items[2], CLOSED[signs[0]], CLOSED[signs[1]])
    if len(items) == 2 and named == [0]:
        return interval(LOWEST, items[1], False, CLOSED[signs[0]])
    return interval(items[0], HIGHEST, CLOSED[signs[0]], False) if len(items) == 2 and named == [1] else None


def spanned(said: Thing, doubtful: bool = False) -> Thing | None:
    """The interval or union that it is; `doubtful`: also two numbers between round brackets."""
    if said.kind == "union":
        sets = [spanned(part, doubtful=True) for part in said.parts]
        return Thing("union", "", tuple(s for s in sets if s is not None)) if all(sets) else None
    if said.kind == "interval":
        return said
    pair = said.kind == "tuple" and len(said.parts) == 2 and (doubtful or said.sign == "[]")
    return Thing("interval", "", said.parts, said.sign) if pair else None


def interval(low: Thing, high: Thing, with_low: bool, with_high: bool) -> Thing:
    """From `low` to `high`."""
    return Thing("interval", "", (low, high), ("[" if with_low else "(") + ("]" if with_high else ")"))


def _without(said: Thing) -> Thing | None:
    """All numbers but one."""
    name, number = said.parts if is_name(said.parts[0]) else said.parts[::-1]
    if not is_name(name) or is_name(number):
        return None
    return Thing("union", "", (interval(LOWEST, number, False, False), interval(number, HIGHEST, False, False)))


def _chain(said: Thing) -> tuple[list[Thing], list[str]]:
    """What stands between the signs, and the signs."""
    items, signs = list[Thing](), list[str]()
    for number, part in enumerate(said.parts):
        signs += [said.sign] if number else []
        inner, more = _chain(part) if part.kind == "relation" else ([part], [])
        items += inner
        signs += more
    return items, signs
