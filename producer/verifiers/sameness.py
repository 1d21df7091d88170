r"""When two things are the same.

Invariant: two things are the same only if they are of one kind and all their parts are the same, or if one gives a name
to what the other is. Refuses to know how a formula is compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from producer.verifiers.expression import equal, formulas
from producer.verifiers.latex import MARK, squeezed
from producer.verifiers.measures import FUNCTIONS, measured, same_measure, unit_words
from producer.verifiers.things import Thing, solved_for

UNORDERED = ("list", "set", "union")
CLOCK = re.compile(r"0?([0-9]{1,2}:[0-5][0-9])\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)


def same(gold: Thing, value: Thing) -> bool:
    """They are."""
    if "relation" in (gold.kind, value.kind) and gold.kind != value.kind:
        return _says(gold, value) if gold.kind == "relation" else _says(value, gold)
    if {gold.kind, value.kind} == {"list", "set"}:
        return "or" not in (gold.sign, value.sign) and _any_order(gold.parts, value.parts)  # braces say nothing more
    if gold.kind != value.kind:
        return False
    if gold.kind == "one":
        return one(gold.text, value.text)
    if gold.kind == "relation":
        return _same_relation(gold, value)
    if gold.sign != value.sign and not (gold.kind == "list" and {gold.sign, value.sign} == {"", "and"}):
        return False
    if gold.kind in UNORDERED:
        return _any_order(gold.parts, value.parts)
    return len(gold.parts) == len(value.parts) and all(map(same, gold.parts, value.parts))


def one(gold: str, value: str) -> bool:
    """Of things without parts: the same number, word or formula."""
    if squeezed(gold) == squeezed(value):
        return True
    times = [_clock(side) for side in (gold, value)]
    if any(times):
        return times[0] == times[1]
    (a, unit), (b, other) = measured(gold), measured(value)
    if a is not None and b is not None:
        return same_measure(a, unit, b, other)
    words = [_words(side) for side in (gold, value)]
    if all(words):
        return words[0] == words[1]
    return not any(words) and _same_formula(_without_unit(gold), _without_unit(value))


def _says(relation: Thing, other: Thing) -> bool:
    """The relation says that something is `other`, all along its chain."""
    if (solution := _solution(relation)) is None:
        return False
    name, values = solution
    names = [found[0] for part in other.parts if part.kind == "relation" and (found := _solution(part))]
    return all(same(name, another) for another in names) and all(
        same(other, value) or (_only(value) is not value and same(other, _only(value))) for value in values
    )


def _solution(said: Thing) -> tuple[Thing, tuple[Thing, ...]] | None:
    """The name and what it is, in all the ways in which that is said; None for what is not solved for a name."""
    if said.sign == "=":
        name, *values = said.parts if solved_for(said.parts[0]) else said.parts[::-1]
        solved = solved_for(name) and not any(squeezed(name.text) == squeezed(value.text) for value in values)
        return (name, tuple(values)) if solved else None
    if said.sign != "\\in" or len(said.parts) != 2 or not solved_for(said.parts[0]):
        return None
    name, where = said.parts
    return (name, (where,)) if where.kind in ("interval", "union") or where.text.startswith("\\mathbb") else None


def _only(side: Thing) -> Thing:
    """The element of a set that has one."""
    return side.parts[0] if side.kind == "set" and len(side.parts) == 1 else side


def _same_relation(gold: Thing, value: Thing) -> bool:
    if squeezed(gold.text) == squeezed(value.text):
        return True
    if gold.sign != value.sign:
        return False
    if gold.sign == "=":
        return _same_equation(gold, value)
    if len(gold.parts) != len(value.parts):
        return False
    turned = gold.sign == "\\ne" and all(map(same, gold.parts, value.parts[::-1]))
    return turned or all(map(same, gold.parts, value.parts))


def _same_equation(gold: Thing, value: Thing) -> bool:
    """Solved for one name they have one value; else they are the same, and not true for everything."""
    one, other = _solution(gold), _solution(value)
    if one and other and same(one[0], other[0]):
        return all(same(_only(a), _only(b)) for a in one[1] for b in other[1])
    if len(gold.parts) != len(value.parts) or any(same(side.parts[0], side.parts[1]) for side in (gold, value)):
        return False
    if any(all(map(same, gold.parts, parts)) for parts in (value.parts, value.parts[::-1])):
        return True
    return len(gold.parts) == 2 and _same_formula(gold.text, value.text)


def _same_formula(gold: str, value: str) -> bool:
    one, other = formulas(gold.replace(MARK, ""), value.replace(MARK, ""))
    return one is not None and other is not None and equal(one, other)


def _any_order(gold: Sequence[Thing], value: Sequence[Thing]) -> bool:
    left = list(value)
    if len(gold) != len(left):
        return False
    for part in gold:
        found = next((i for i, other in enumerate(left) if same(part, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _words(text: str) -> str:
    """The words of what is words alone, else ''."""
    inside = re.sub(r"\s+", " ", text.replace(MARK, " ")).strip(" .").casefold()
    marked = MARK in text and not text.split(MARK)[0].strip() and not text.split(MARK)[-1].strip()
    bare = re.fullmatch(r"[a-z]{3,}(?:[ -][a-z]+)*|no", inside) and re.search(r"[aeiouy]", inside)
    if not (marked or (bare and inside not in FUNCTIONS)):
        return ""
    return inside.strip("()") if re.fullmatch(r"\([a-z]\)|[a-z]", inside) else inside


def _without_unit(text: str) -> str:
    """A formula without the unit in words behind it."""
    head, mark, rest = text.partition(MARK)
    unit = re.fullmatch(r"([^\x00]*)\x00(\^\{?[23]\}?)?\s*", rest) if mark else None
    return head if unit and unit_words(unit[1]) else text


def _clock(text: str) -> tuple[str, str] | None:
    """A time of day, and the half of the day if that is said."""
    match = CLOCK.fullmatch(text.replace(MARK, "").strip())
    return (match[1], (match[2] or "").casefold()) if match else None
