"""What Prometheus is told: how often, which rules, and where the processes of a run are.

Invariant: every target says whose it is, by the labels `job` (its role) and `run`; targets are a file of their own,
which Prometheus reads again by itself when it changes. Refuses to know how Prometheus is started.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.files import replace_file
from monitoring.recipe import ViewRecipe

RULES = Path(__file__).parent / "prometheus"
CONFIGURATION = """\
# Written by `make monitoring`; paths are relative to this file.
global:
  scrape_interval: {interval}
  evaluation_interval: {interval}
rule_files:
  - rules/*.yml
scrape_configs:
  - job_name: headrace
    file_sd_configs:
      - files: [targets.json]
        refresh_interval: {interval}
"""
EVERYWHERE = ("0.0.0.0", "::", "")


def targets(recipe: ViewRecipe) -> list[dict[str, Any]]:
    """The endpoints of a run that is configured so, in the form of `file_sd_configs`; those that are off left out."""
    settings = recipe.monitoring
    host = "127.0.0.1" if settings.host in EVERYWHERE else settings.host

    def of(job: str, port: int) -> Iterator[dict[str, Any]]:
        if port:
            yield {"targets": [f"{host}:{port}"], "labels": {"job": job, "run": recipe.run.name}}

    found = [*of("learner", settings.learner_port), *of("exporter", settings.exporter_port)]
    for number in range(recipe.generator.count):
        found += of("generator", settings.port_of(number))
    return found


@dataclass(frozen=True)
class ScrapeFolder:
    """Prometheus' configuration with all that it refers to; can be mounted into a container as it is."""

    path: Path

    @property
    def configuration(self) -> Path:
        """For `--config.file`."""
        return self.path / "prometheus.yml"

    def write(self, seconds: float) -> None:
        """The configuration, and a copy of the rules."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.configuration, CONFIGURATION.format(interval=f"{round(1000 * seconds)}ms").encode())
        shutil.rmtree(self.path / "rules", ignore_errors=True)
        (self.path / "rules").mkdir()
        for rules in sorted(RULES.glob("*.yml")):
            if re.search("^groups:", rules.read_text(encoding="utf-8"), re.MULTILINE):  # their tests are none
                shutil.copy(rules, self.path / "rules")

    def point(self, at: list[dict[str, Any]]) -> None:
        """Scrape these from now on; a file that says so already is left alone."""
        text = json.dumps(at, indent=1).encode()
        file = self.path / "targets.json"
        if not file.exists() or file.read_bytes() != text:
            replace_file(file, text)
