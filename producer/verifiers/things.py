r"""What an answer is made of: brackets, lists, matrices, equations, and in the end numbers, formulas and words.

Invariant: nothing is left out on the way: the parts of a thing, what joins them and what surrounds them say all that
its text says. Refuses to know when two things are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from producer.verifiers.latex import MARK, squeezed
from producer.verifiers.number import read_number

Kind = Literal["one", "list", "set", "tuple", "interval", "union", "matrix", "relation"]
PARTS = 64  # of one thing
RELATIONS = ("\\le", "\\ge", "\\ne", "<", ">", "=", "\\in")
TURNED = {">": "<", "\\ge": "\\le"}  # read from the other side
NAMED = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?|')?(?:\^\{-1\})?(?:\s*\(\s*\w+\s*\))?")
CONSTANT = re.compile(r"(?:e|i|\\pi|\\infty|\\emptyset|\\R)(?:\^\{-1\})?|\\[a-z]+\s*\(\s*[0-9]+\s*\)")
MATRIX = re.compile(r"\\begin\s*\{([pbBvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
LETTER = re.compile(r"^\x00\s*\(?([A-Z])\)?\s*\x00$")  # of a choice
REALS = ("\\mathbb{R}", "\\mathbbR", "\\R", "\u211d", "allrealnumbers")
EMPTY = ("\\emptyset", "\\{\\}", "\\{ \\}")
NO_SOLUTION = ("nosolution", "nosolutions")
OR = rf"[,;]?\s*(?:{MARK}\s*or\s*{MARK}|\bor\b|\\(?:lor|vee)(?![A-Za-z]))"
AND = rf"[,;]?\s*(?:{MARK}\s*and\s*{MARK}|\band\b|\\(?:land|wedge)(?![A-Za-z]))"


@dataclass(frozen=True)
class Thing:
    """`text` is it as it stands; `parts` what it consists of, `sign` the relation, the brackets, or `and` and `or`.

    A list has a sign only where it matters: between relations, unless all of them give values to one name.
    """

    kind: Kind
    text: str
    parts: tuple[Thing, ...] = ()
    sign: str = ""


def thing(text: str) -> Thing:
    """From plain LaTeX."""
    text = LETTER.sub(r"\1", text.strip())
    if (match := MATRIX.fullmatch(text)) is not None:
        return _matrix(text, match[1], match[2])
    items = split(text, ",", f";|{OR}|{AND}")
    if len(items) > 1 and all(map(_is_relation, items)):
        return _relations(text, items)  # x = 1, 2 says two values of x; x = 1, y = 2 are two equations
    if (relation := _relation(text)) is not None:
        return relation
    for sign in (r"\cup", r"\pm"):
        if len(halves := split(text, sign)) > 1:
            parts = tuple(map(thing, halves[:PARTS])) if sign == r"\cup" else ()
            return Thing("union", text, parts) if parts else _two(text, halves)
    if len(items) > 1 and not _thousands(text):
        return Thing("list", text, tuple(map(thing, items[:PARTS])))
    return _bracketed(text) or Thing("one", text)


def split(text: str, sign: str, more: str = "") -> list[str]:
    """At `sign` (or the pattern `more`) outside all brackets and marks."""
    depth, inside, last, at, out = 0, False, 0, 0, []
    pattern = re.compile("|".join(filter(None, (more, re.escape(sign) + ("(?![A-Za-z])" if sign[0] == "\\" else "")))))
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


def is_name(side: Thing) -> bool:
    """It is what an equation may be solved for: `x`, `x_1`, `f(x)`, and no constant."""
    return side.kind == "one" and bool(NAMED.fullmatch(side.text)) and not CONSTANT.fullmatch(side.text)


def solved_for(side: Thing) -> bool:
    """A name, or a tuple of them."""
    return is_name(side) or (side.kind == "tuple" and all(map(is_name, side.parts)))


def _relations(text: str, items: Sequence[str]) -> Thing:
    """What `or` joins is a list of what `and` joins; a comma goes along with either."""
    sign = "or" if len(split(text, "\x01", OR)) > 1 else "and"
    parts = tuple(map(thing, (split(text, ",", f";|{OR}") if sign == "or" else items)[:PARTS]))
    valued = all(part.sign == "=" and len(part.parts) == 2 and solved_for(part.parts[0]) for part in parts)
    same_name = valued and len({squeezed(part.parts[0].text) for part in parts}) == 1
    return Thing("list", text, parts, "" if same_name else sign)


def _is_relation(text: str) -> bool:
    """By its sign alone: what is read twice on every level of nesting is read without end."""
    return any(len(sides := split(text, sign)) > 2 or (len(sides) == 2 and all(sides)) for sign in RELATIONS)


def _relation(text: str) -> Thing | None:
    for sign in RELATIONS:
        sides = split(text, sign)
        if len(sides) > 2 or (len(sides) == 2 and all(sides)):
            parts = tuple(map(thing, sides[:PARTS]))
            if sign == "\\in" and len(parts) == 2 and parts[1].kind == "set":
                sign = "="  # its elements are the values
            return Thing("relation", text, parts[::-1] if sign in TURNED else parts, TURNED.get(sign, sign))
    return None


def _bracketed(text: str) -> Thing | None:
    left, body, right = text[:1], text[1:-1], text[-1:]
    if text in EMPTY or squeezed(text).casefold().rstrip(".") in NO_SOLUTION:
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


def _thousands(text: str) -> bool:
    return read_number(text) is not None and "," in text
