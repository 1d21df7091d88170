"""From what a verifier says of a completion to its reward, under the weights a recipe gives the components.

Invariant: the reward is the weighted sum of components that travel beside it, so whatever it pays for can be seen.
Refuses to know verifiers, and what is done with a reward.

Beside the verifier's components there are some of style, computed where a weight names them: `length` (of the limit, 0
to 1), `truncated` (0 or 1), and a script's name (`latin`, `han`, …): the fraction of the letters that belong to it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import replace

from producer.engine import Completion
from producer.tasks.base import Verdict

SCRIPTS = {
    "arabic": ("ARABIC",),
    "cyrillic": ("CYRILLIC",),
    "devanagari": ("DEVANAGARI",),
    "greek": ("GREEK",),
    "han": ("CJK",),
    "hangul": ("HANGUL",),
    "hebrew": ("HEBREW",),
    "kana": ("HIRAGANA", "KATAKANA"),
    "latin": ("LATIN",),
    "thai": ("THAI",),
}
STYLE = ("length", "truncated", *SCRIPTS)


def rewarded(verdict: Verdict, weights: Mapping[str, float], text: str, completion: Completion, limit: int) -> Verdict:
    """The verdict with the components of style and the reward that `weights` ask for; with none, as it is.

    `limit`: the most tokens a completion may have. A component the verifier did not name counts as 0: one that failed
    on this completion named none.
    """
    if not weights:
        return verdict
    style = {name: _style(name, text, completion, limit) for name in weights if name in STYLE}
    components = {**verdict.components, **style}
    return replace(
        verdict, reward=sum(w * components.get(name, 0.0) for name, w in weights.items()), components=components
    )


def _style(name: str, text: str, completion: Completion, limit: int) -> float:
    if name == "length":
        return len(completion.tokens) / limit
    if name == "truncated":
        return float(completion.truncated)
    letters = [char for char in text if char.isalpha()]
    inside = sum(unicodedata.name(char, "").startswith(SCRIPTS[name]) for char in letters)
    return inside / len(letters) if letters else 1.0
