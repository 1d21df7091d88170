"""Braces: where one ends.

Invariant: one pass over the text. Refuses to know what stands inside.
"""

from __future__ import annotations


def closing(text: str, start: int, most: int | None = None) -> int | None:
    """Index of the brace that closes the one just before `start`; None if there is none within `most` characters."""
    depth = 1
    for at in range(start, len(text) if most is None else min(len(text), start + most)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at
    return None
