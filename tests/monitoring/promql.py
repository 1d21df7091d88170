"""What a PromQL expression names, by its words alone, and what there is to name. Whether it parses promtool knows."""

from __future__ import annotations

import re
from collections.abc import Iterator

from monitoring.catalogue import VLLM, catalogue

STRINGS = re.compile(r'"[^"]*"|\'[^\']*\'')
NAME = re.compile(r"(?<![\w:])(?:headrace_\w+|headrace:[\w:]+|vllm:\w+)")
OURS = {series: one.kind for one in catalogue() for series in one.series}
OF_VLLM = {series: one.kind for one in VLLM for series in one.series}
OF_COUNTERS = ("rate", "irate", "increase", "resets")


def uses(expression: str) -> Iterator[tuple[str, str]]:
    """Every metric or recorded name, and the function whose argument it is directly, empty where there is none."""
    plain = STRINGS.sub(lambda match: " " * len(match[0]), expression)
    for match in NAME.finditer(plain):
        before = re.search(r"(\w+)\s*\(\s*$", plain[: match.start()])
        yield match[0], before[1] if before else ""
