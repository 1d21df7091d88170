"""How many generators the launcher of a run keeps: a number in the run's folder.

Invariant: it is replaced as a whole, and whoever reads finds a number or None. Refuses to know who acts on it.
"""

from __future__ import annotations

import re

from broker.files import replace_text
from broker.run_folder import RunFolder


def wanted(folder: RunFolder) -> int | None:
    """The number; None where nobody has written one, or somebody something else."""
    try:
        text = folder.generators.read_bytes()[:20].strip()
    except FileNotFoundError:
        return None
    return int(text) if re.fullmatch(rb"\d{1,4}", text) else None


def want(folder: RunFolder, count: int) -> None:
    """From now on so many."""
    replace_text(folder.generators, f"{count}\n")
