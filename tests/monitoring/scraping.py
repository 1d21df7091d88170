"""Debian's real Prometheus, with our rules, over endpoints of our own; without it the tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitoring.prometheus_api import Prometheus
from monitoring.scrape import ScrapeFolder
from monitoring.services import Service, prometheus
from tests.ports import free_port

SCRAPE_SECONDS = 0.5


def binary() -> str:
    """Prometheus, or the test is skipped and says why."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("Prometheus is not installed: `apt install prometheus`")
    return found


def target(job: str, port: int, run: str = "demo") -> Mapping[str, object]:
    """One process, as `make monitoring` tells Prometheus of it."""
    return {"targets": [f"127.0.0.1:{port}"], "labels": {"job": job, "run": run}}


class Scraping:
    """A Prometheus that can be stopped, started again on its old port, and pointed elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = ScrapeFolder(folder), free_port()
        self.folder.write(SCRAPE_SECONDS)
        self.service = self._service()

    def _service(self) -> Service:
        return prometheus(binary(), self.folder.configuration, self.folder.path / "data", self.port)

    def point(self, *at: Mapping[str, object]) -> None:
        """Scrape these from now on."""
        self.folder.point([dict(one) for one in at])

    def restart(self) -> None:
        """With what it has stored."""
        self.service = self._service().start()

    @property
    def asked(self) -> Prometheus:
        """Its API."""
        return Prometheus(self.service.url)


@contextmanager
def scraping(folder: Path, *at: Mapping[str, object]) -> Iterator[Scraping]:
    """One that scrapes `at`, while the block runs."""
    found = Scraping(folder)
    found.point(*at)
    found.service.start()
    try:
        yield found
    finally:
        found.service.stop()
