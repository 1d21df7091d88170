"""What Prometheus is told of a run: read by promtool, and by a real Prometheus that finds out when it changes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from broker.loading import load
from broker.run_folder import RunFolder
from broker.scale import want
from monitoring.recipe import ViewRecipe, resolved
from monitoring.scrape import ScrapeFolder, targets
from tests.system.processes import ROOT

PORTS = (
    "--monitoring.learner_port",
    "9400",
    "--monitoring.generator_port",
    "9410",
    "--monitoring.exporter_port",
    "9401",
)


def recipe(*flags: str) -> ViewRecipe:
    return load(ViewRecipe, ROOT / "recipes/tiny.toml", list(flags), {})


def test_every_process_is_a_target_that_says_whose_it_is() -> None:
    found = targets(recipe(*PORTS, "--generator.count", "3"))
    assert [(t["targets"], t["labels"]["job"]) for t in found] == [
        (["127.0.0.1:9400"], "learner"),
        (["127.0.0.1:9401"], "exporter"),
        (["127.0.0.1:9410"], "generator"),
        (["127.0.0.1:9411"], "generator"),
        (["127.0.0.1:9412"], "generator"),
    ]
    assert {t["labels"]["run"] for t in found} == {"tiny"}


def test_a_run_that_was_scaled_has_as_many_targets_as_generators(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    shutil.copy(ROOT / "recipes/demo.toml", folder.recipe)

    def generators() -> list[str]:
        return [at for t in targets(resolved(folder)) if t["labels"]["job"] == "generator" for at in t["targets"]]

    assert generators() == ["127.0.0.1:9410"]
    want(folder, 2)
    assert generators() == ["127.0.0.1:9410", "127.0.0.1:9411"]
    want(folder, 0)
    assert generators() == []


def test_an_endpoint_that_is_off_is_no_target() -> None:
    assert targets(recipe()) == []
    assert len(targets(recipe("--monitoring.exporter_port", "9401", "--generator.count", "3"))) == 1


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")])
def test_who_listens_everywhere_is_asked_on_loopback(host: str, asked: str) -> None:
    (one,) = targets(recipe("--monitoring.host", host, "--monitoring.learner_port", "9400"))
    assert one["targets"] == [f"{asked}:9400"]


def test_the_folder_is_complete_and_promtool_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: `apt install prometheus`")
    folder = ScrapeFolder(tmp_path / "monitoring")
    folder.write(5.0)
    folder.point(targets(recipe(*PORTS)))
    moved = shutil.move(folder.path, tmp_path / "elsewhere")  # as into a container: nothing in it is an absolute path
    done = subprocess.run(
        [promtool, "check", "config", str(Path(moved) / "prometheus.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
    assert "FAILED" not in done.stdout


def test_rules_are_copied_and_nothing_else_that_lies_beside_them(tmp_path: Path) -> None:
    folder = ScrapeFolder(tmp_path)
    folder.write(5.0)
    copied = sorted(path.name for path in (tmp_path / "rules").iterdir())
    assert "alerts.yml" in copied
    assert "prometheus.yml" not in copied
    (tmp_path / "rules" / "of-yesterday.yml").write_text("groups: []")
    folder.write(5.0)
    assert sorted(path.name for path in (tmp_path / "rules").iterdir()) == copied


def test_targets_are_written_when_they_change_and_only_then(tmp_path: Path) -> None:
    folder, first, second = ScrapeFolder(tmp_path), targets(recipe(*PORTS)), targets(recipe(*PORTS, "--run.name", "b"))
    folder.point(first)
    written = (tmp_path / "targets.json").stat().st_ino
    folder.point(first)
    assert (tmp_path / "targets.json").stat().st_ino == written
    folder.point(second)
    assert (tmp_path / "targets.json").stat().st_ino != written
    assert json.loads((tmp_path / "targets.json").read_text()) == second
