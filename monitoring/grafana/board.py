"""A dashboard as it lies in `dashboards/`: what its panels ask, and where on the grid they are.

Invariant: read from the JSON that Grafana is given, so whoever checks or draws it checks and draws that. Refuses to
know Grafana's SDK, and what the panels mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"


@dataclass(frozen=True)
class Query:
    """One expression, with its variables still in it."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel; the JSON that is not named here is in `raw`."""

    raw: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Its id, unique on the dashboard."""
        return int(self.raw["id"])

    @property
    def title(self) -> str:
        """Above it."""
        return str(self.raw["title"])

    @property
    def kind(self) -> str:
        """Grafana's name of what it draws; a row is a heading."""
        return str(self.raw["type"])

    @property
    def queries(self) -> Sequence[Query]:
        """In order."""
        return [Query(target["expr"], target["legendFormat"]) for target in self.raw.get("targets", ())]

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Column, line, width, height, of 24 columns."""
        at = self.raw["gridPos"]
        return at["x"], at["y"], at["w"], at["h"]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Unit, limits, words of every series."""
        found: Mapping[str, Any] = self.raw["fieldConfig"]["defaults"]
        return found

    @property
    def custom(self) -> Mapping[str, Any]:
        """How lines are drawn."""
        found: Mapping[str, Any] = self.defaults.get("custom", {})
        return found

    @property
    def limits(self) -> Sequence[tuple[float | None, str]]:
        """From this value upwards (None: all values) this colour."""
        steps = self.defaults.get("thresholds", {}).get("steps", ())
        return [(step["value"], step["color"]) for step in steps]

    @property
    def words(self) -> Mapping[str, str]:
        """Text that stands for a value."""
        return {k: v["text"] for mapping in self.defaults.get("mappings", ()) for k, v in mapping["options"].items()}


@dataclass(frozen=True)
class Dashboard:
    """One file."""

    path: Path

    @cached_property
    def raw(self) -> Mapping[str, Any]:
        """All of it."""
        found: Mapping[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.stem

    @property
    def title(self) -> str:
        """As people see it."""
        return str(self.raw["title"])

    @cached_property
    def everything(self) -> Sequence[Panel]:
        """Panels and headings, from top to bottom."""
        return [Panel(raw) for raw in self.raw["panels"]]

    @property
    def panels(self) -> Sequence[Panel]:
        """Without the headings."""
        return [panel for panel in self.everything if panel.kind != "row"]


def committed() -> Sequence[Dashboard]:
    """Those that are provisioned."""
    return [Dashboard(path) for path in sorted(FOLDER.glob("*.json"))]
