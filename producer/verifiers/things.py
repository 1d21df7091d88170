r"""What an answer is made of: brackets, lists, matrices, equations, and in the end numbers, formulas and words.

Invariant: two things are the same only if they are of one kind and all their parts are the same. Refuses to know how a
formula is compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from producer.verifiers.expression import equal, formula
from producer.verifiers.latex import MARK, squeezed
from producer.verifiers.measures import FUNCTIONS, measured, same_measure
from producer.verifiers.number import read_number

Kind = Literal["one", "list", "set", "tuple", "interval", "union", "matrix", "relation"]
PARTS = 64  # of one thing
UNORDERED = ("list", "set", "union")
RELATIONS = ("\\le", "\\ge", "\\ne", "<", ">", "=", "\\in")
TURNED = {">": "<", "\\ge": "\\le"}  # read from the other side
NAMED = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?|')?(?:\^\{-1\})?(?:\s*\(\s*\w+\s*\))?")
MATRIX = re.compile(r"\\begin\s*\{([pbBvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
LETTER = re.compile(r"^\x00\s*\(?([A-Z])\)?\s*\x00$")  # of a choice
REALS = ("\\mathbb{R}", "\\R", "\u211d", "allrealnumbers")
EMPTY = ("\\emptyset", "\\{\\}", "\\{ \\}")


@dataclass(frozen=True)
class Thing:
    """`text` is it as it stands; `parts` what it consists of, `sign` the relation or the brackets."""

    kind: Kind
    text: str
    parts: tuple[Thing, ...] = ()
    sign: str = ""


def thing(text: str) -> Thing:
    """From plain LaTeX."""
    text = LETTER.sub(r"\1", text.strip())
    if (match := MATRIX.fullmatch(text)) is not None:
        return _matrix(text, match[1], match[2])
    for sign in (r"\cup", r"\pm"):
        if len(halves := split(text, sign)) > 1:
            parts = tuple(map(thing, halves[:PARTS])) if sign == r"\cup" else ()
            return Thing("union", text, parts) if parts else _two(text, halves)
    items = split(text, ",", r"\x00\s*(?:and|or)\s*\x00|\band\b|\bor\b|;")
    if not (len(items) > 1 and all(map(_relation, items))) and (relation := _relation(text)) is not None:
        return relation  # x = 1, 2 says two values of x; x = 1, y = 2 are two equations
    if len(items) > 1 and not _thousands(text):
        return Thing("list", text, tuple(map(thing, items[:PARTS])))
    return _bracketed(text) or Thing("one", text)


def same(gold: Thing, value: Thing) -> bool:
    """They are."""
    if gold.kind == "relation" and value.kind != "relation" and gold.sign in ("=", "\\in"):
        return _solved_for(gold.parts[0]) and same(gold.parts[1], value)
    if value.kind == "relation" and gold.kind != "relation" and value.sign in ("=", "\\in"):
        return _solved_for(value.parts[0]) and same(gold, value.parts[1])
    if {gold.kind, value.kind} == {"list", "set"}:
        return _any_order(gold.parts, value.parts)  # braces around a list of solutions say nothing more
    if gold.kind != value.kind:
        return False
    if gold.kind == "one":
        return one(gold.text, value.text)
    if gold.kind == "relation":
        return _same_relation(gold, value)
    if gold.sign != value.sign or len(gold.parts) != len(value.parts):
        return False
    if gold.kind in UNORDERED:
        return _any_order(gold.parts, value.parts)
    return all(map(same, gold.parts, value.parts))


def one(gold: str, value: str) -> bool:
    """Of things without parts: the same number, word or formula."""
    if squeezed(gold) == squeezed(value):
        return True
    (a, unit), (b, other) = measured(gold), measured(value)
    if a is not None and b is not None:
        return same_measure(a, unit, b, other)
    words = [_words(side) for side in (gold, value)]
    if all(words):
        return words[0] == words[1]
    if any(words):
        return False
    sides = [formula(side.replace(MARK, "")) for side in (_without_unit(gold), _without_unit(value))]
    return sides[0] is not None and sides[1] is not None and equal(sides[0], sides[1])


def split(text: str, sign: str, more: str = "") -> list[str]:
    """At `sign` (or the pattern `more`) outside all brackets and marks."""
    depth, inside, last, at, out = 0, False, 0, 0, []
    pattern = re.compile("|".join(filter(None, (re.escape(sign) + ("(?![A-Za-z])" if sign[0] == "\\" else ""), more))))
    while at < len(text):
        if depth == 0 and (match := pattern.match(text, at)) and match.end() > at and not inside:
            out.append(text[last:at])
            last = at = match.end()
            continue
        char = text[at]
        if char == MARK:
            inside = not inside
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth = max(0, depth - 1)
        at += 1
    return [part.strip() for part in (*out, text[last:])]


def _bracketed(text: str) -> Thing | None:
    left, body, right = text[:1], text[1:-1], text[-1:]
    if text in EMPTY:
        return Thing("set", text)
    if squeezed(text) in REALS:
        return Thing("interval", text, (Thing("one", "-\\infty"), Thing("one", "\\infty")), "()")
    if text.startswith("\\{") and text.endswith("\\}"):
        return Thing("set", text, tuple(map(thing, split(text[2:-2], ",")[:PARTS])))
    if left not in ("(", "[") or right not in (")", "]") or len(text) < 3:
        return None
    items = split(body, ",")
    if len(items) == 1:
        return thing(body) if left + right == "()" and _closes(text) else None
    if len(items) == 2 and (left + right in ("(]", "[)") or "\\infty" in body):
        return Thing("interval", text, tuple(map(thing, items)), left + right)
    return Thing("tuple", text, tuple(map(thing, items[:PARTS])), left + right) if _closes(text) else None


def _closes(text: str) -> bool:
    """The first bracket is closed by the last one."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0:
            return at == len(text) - 1
    return False


def _matrix(text: str, kind: str, body: str) -> Thing:
    rows = [row.split("&") for row in re.split(r"\\\\", body) if row.strip()]
    cells = tuple(Thing("tuple", "", tuple(thing(cell) for cell in row[:PARTS])) for row in rows[:PARTS])
    return Thing("matrix", text, cells, "|" if kind in ("vmatrix", "Vmatrix") else "")


def _two(text: str, halves: Sequence[str]) -> Thing:
    """a ± b is two values."""
    if len(halves) != 2:
        return Thing("one", text)
    return Thing("list", text, tuple(thing(f"{halves[0]} {sign} {halves[1]}".strip()) for sign in "+-"))


def _relation(text: str) -> Thing | None:
    for sign in RELATIONS:
        sides = split(text, sign)
        if len(sides) > 2 or (len(sides) == 2 and all(sides)):
            parts = tuple(map(thing, sides[:PARTS]))
            return Thing("relation", text, parts[::-1] if sign in TURNED else parts, TURNED.get(sign, sign))
    return None


def _same_relation(gold: Thing, value: Thing) -> bool:
    if gold.sign != value.sign or len(gold.parts) != len(value.parts):
        return False
    if all(map(same, gold.parts, value.parts)):
        return True
    if gold.sign in ("=", "\\ne") and all(map(same, gold.parts, value.parts[::-1])):
        return True
    if gold.sign != "=" or len(gold.parts) != 2:
        return False
    sides = [formula(side.text.replace(MARK, "")) for side in (gold, value)]
    return sides[0] is not None and sides[1] is not None and equal(sides[0], sides[1])


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


def _solved_for(side: Thing) -> bool:
    return is_name(side) or (side.kind == "tuple" and all(map(is_name, side.parts)))


def is_name(side: Thing) -> bool:
    """It is what an equation may be solved for: `x`, `x_1`, `f(x)`."""
    return side.kind == "one" and bool(NAMED.fullmatch(side.text))


def _thousands(text: str) -> bool:
    return read_number(text) is not None and "," in text


def _words(text: str) -> str:
    """The words of what is words alone, else ''."""
    inside = re.sub(r"\s+", " ", text.replace(MARK, " ")).strip(" .").casefold()
    marked = MARK in text and not text.split(MARK)[0].strip() and not text.split(MARK)[-1].strip()
    bare = re.fullmatch(r"[a-z]{3,}(?:[ -][a-z]+)*|no", inside) and re.search(r"[aeiouy]", inside)
    if not (marked or (bare and inside not in FUNCTIONS)):
        return ""
    return inside.strip("()") if re.fullmatch(r"\([a-z]\)|[a-z]", inside) else inside


def _without_unit(text: str) -> str:
    """A formula without the words behind it."""
    head, mark, rest = text.partition(MARK)
    return head if mark and re.fullmatch(r"[^\x00]*\x00(\^\{?[23]\}?)?\s*", rest) else text
