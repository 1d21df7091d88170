"""Declared answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from producer.tasks.base import Problem


def declared(completion: str, problem: Problem, formats: Sequence[str]) -> list[str]:
    """What a completion declares, in order."""
    del problem
    assert tuple(formats) == ("tags",)
    return re.findall(r"<answer>(.*?)</answer>", completion.rpartition("</think>")[2], re.DOTALL)
