"""What tests of several verbs ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.embedded import EmbeddedServer
from broker.keys import Keys
from tests.monitoring.fabricated import Run


@pytest.fixture
def say(
    redis_server: EmbeddedServer,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """What a verb, given by its `main`, prints of the run whose Redis its folder names."""

    def said(main: Callable[[], None], *arguments: str, url: str = "") -> str:
        run = Run(tmp_path, keys.run, sections={"broker": {"url": url or redis_server.url}})
        monkeypatch.setattr(sys, "argv", ["a verb", str(run.folder.recipe), *arguments])
        main()
        return capsys.readouterr().out

    return said
