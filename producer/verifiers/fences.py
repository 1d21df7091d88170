"""Fenced blocks of Python, as models write them.

Invariant: a block is what stands between the fence that opens it and the first that closes it; one that is not closed
is none. Refuses to know what stands in it.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

FENCE = re.compile(r"([^`]*?)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")  # what stands before, the fence, the language
LAST = re.compile(r"([^`#]*[^`#\s])(`{3,})[ \t]*")  # a line of code and a fence behind it
LONGEST_FENCE = 100  # characters, what stands before and behind included
LANGUAGES = ("", "python", "py", "python3")


def blocks(text: str) -> list[str]:
    """What stands in fenced blocks of Python, or of no language; one that is not closed is none."""
    out = list[str]()
    opened: re.Match[str] | None = None
    lines = list[str]()
    for line in text.replace("\r\n", "\n").split("\n"):  # splitlines() also breaks at U+2028 inside a string
        if opened is None:
            opened, lines = _opening(line), []
        elif (last := _closing(line, opened)) is None:
            lines.append(line.removeprefix(opened[1]))
        else:
            if _language(opened) in LANGUAGES:
                whole = "\n".join([*lines, *([last.removeprefix(opened[1])] if last else [])])
                out.append(textwrap.dedent(whole) if opened[1].strip() else whole)
            opened = None
    return out


def _opening(line: str) -> re.Match[str] | None:
    """Text may stand before a fence, or a fence be of tildes, where it says that Python follows."""
    match = FENCE.fullmatch(line) if len(line) <= LONGEST_FENCE else None
    if match is None or (match[3] and _language(match) in LANGUAGES and not (match[1].strip() and match[2][0] == "~")):
        return match
    return None if match[1].strip() or match[2][0] == "~" else match


def _closing(line: str, opened: re.Match[str]) -> str | None:
    """The code before the fence on a line that closes a block, '' mostly; None for any other line."""
    if len(line) > LONGEST_FENCE:
        return None
    match = FENCE.fullmatch(line)
    if match and not match[1].strip() and not match[3] and match[2].startswith(opened[2]):
        return ""
    last = LAST.fullmatch(line)
    return last[1] if last and last[2] == opened[2] and _is_code(last[1]) else None


def _language(opened: re.Match[str]) -> str:
    """Without the braces of `{python}` and the file of `python:mean.py`."""
    return opened[3].lower().strip("{}.").split(":")[0]


def _is_code(line: str) -> bool:
    """Rather than a line of a docstring."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(line.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True
