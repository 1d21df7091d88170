r"""LaTeX to a plainer LaTeX: the same thing written in one way.

Invariant: only what cannot change the meaning is changed: spacing, sizes, synonyms, decoration. Refuses to know
mathematics beyond that.
"""

from __future__ import annotations

import re
import unicodedata

from producer.verifiers.braces import closing

SYNONYMS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "/",
    "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2264": "\\le ",
    "\u2265": "\\ge ", "\u2260": "\\ne ", "\u00b1": "\\pm ", "\u00b0": "", "\u221a": "\\sqrt ", "\u2205": "\\emptyset ",
    "\u03b8": "\\theta ", "\u2044": "/", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4",
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\leq": "\\le ", "\\geq": "\\ge ", "\\neq": "\\ne ",
    "\\leqslant": "\\le ", "\\geqslant": "\\ge ", "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lbrack": "[",
    "\\rbrack": "]", "\\varnothing": "\\emptyset ", "\\div": "/", "\\ast": "\\cdot ", "\\dots": "\\ldots ",
    "\\$": "", "\\degree": "", "\\%": "%", "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\mid": "|",
    ">=": "\\ge ", "<=": "\\le ", "\\And": "&", "\\infin": "\\infty ", "\\space": " ", "\\thinspace": " ",
    "\\newline": " ",
}  # fmt: skip
_SYNONYM = re.compile(
    "|".join(re.escape(key) + (r"(?![A-Za-z])" if key[-1].isalpha() else "") for key in sorted(SYNONYMS, key=len)[::-1])
)
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|scriptstyle|limits|nolimits|phantom\{[^{}]*\}"
    r"|hspace\{[^{}]*\})"
    r"(?![A-Za-z])\.?"
)
_SPACING = re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\enspace(?![A-Za-z])|\\\\\s*$")
_WRAPPED = re.compile(r"^\s*(?:\\boxed|\\fbox|\\mathbf|\\boldsymbol|\\bm)\s*\{(.*)\}\s*$", re.DOTALL)
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname)\s*\{"
)
_SHORT_FRACTION = re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])")
_HALF_FRACTION = re.compile(r"\\frac\s*([0-9A-Za-z])\s*\{")
_OTHER_HALF = re.compile(r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_CALLED_ROOT = re.compile(r"(?<!\\)\bsqrt\s*\(([^()]*)\)|\\sqrt\s*\(([^()]*)\)")
_CHOOSE = re.compile(r"\{?\s*(\w+)\s*\\choose\s*(\w+)\s*\}?")
_CALLED = re.compile(r"(?<![\\A-Za-z])(arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s*\()")
_POWER = re.compile(r"\^\s*([0-9A-Za-z])")  # x^2y is no x^{2y}
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\s*\\circ(?![A-Za-z])")
MARK, DEPTH = "\x00", 20  # MARK: surrounds what stood inside \text{}


def plain(text: str) -> str:
    r"""One way to write it; \text{…} and its like stand between two MARKs. '' where braces do not match."""
    text = unicodedata.normalize("NFC", text).replace(MARK, "")
    text = "".join(char for char in text.replace("\\$", " ") if char.isprintable() or char in "\n\t ")
    if _depth(text) is None:
        return ""
    for _ in range(3):
        text = _unwrapped(text.strip())
    text = _SIZES.sub("", text)
    text = _marked(text)
    text = _DEGREES.sub("", text)
    text = _SYNONYM.sub(lambda match: SYNONYMS[match.group()], text)
    text = _SPACING.sub(" ", re.sub(r"(?<!\\)\\!\s*", "", text)).replace("{,}", ",")
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _CALLED.sub(r"\\\1", text)
    text = _POWER.sub(r"^{\1}", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _HALF_FRACTION.sub(r"\\frac{\1}{", text)
    text = _OTHER_HALF.sub(r"\1{\2}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _CALLED_ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9]))(?<![0-9]{4} )", ",", text) if _spaced(text) else text
    return re.sub(r"\s+", " ", text).strip()


def squeezed(text: str) -> str:
    """Without marks, and spaces but those between digits: what two ways of writing the same have in common."""
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text.replace(MARK, "")).replace("^{2}", "^2").replace("^{3}", "^3")


def _depth(text: str) -> int | None:
    """How deep braces nest; None where they do not match or nest deeper than DEPTH."""
    depth = most = 0
    for at, char in enumerate(text):
        if char in "{}" and (at == 0 or text[at - 1] != "\\"):
            depth += 1 if char == "{" else -1
            most = max(most, depth)
            if depth < 0 or most > DEPTH:
                return None
    return most if depth == 0 else None


def _unwrapped(text: str) -> str:
    """Without dollars, delimiters, a full stop, a box around all of it."""
    text = text.strip().rstrip(".").strip() if not text.strip().endswith("...") else text
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`")):
        inside = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right) and left not in inside:
            text = inside.strip()
    if text.startswith("{") and text.endswith("}") and _depth(text[1:-1]) is not None:
        text = text[1:-1].strip()
    if (match := _WRAPPED.match(text)) and _depth(match[1]) is not None:
        text = match[1].strip()
    return text.removeprefix("$") if text.count("$") == 1 and text[1:2].isdigit() else text


def _marked(text: str) -> str:
    """Text commands gone, their content between marks."""
    while match := _TEXT.search(text):
        end = closing(text, match.end())
        at = len(text) - 1 if end is None else end
        text = f"{text[: match.start()]}{MARK}{text[match.end() : at]}{MARK}{text[at + 1 :]}"
    return text


def _spaced(text: str) -> bool:
    """A number with spaces between its thousands, and nothing else."""
    return bool(re.fullmatch(r"\s*[-+]?[0-9]{1,3}( [0-9]{3})+(\.[0-9]+)?\s*", text))
