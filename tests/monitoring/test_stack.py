"""`make monitoring`: what it starts where, that Debian's Prometheus follows the run, and what it says if it cannot.

Grafana is started by nobody here: its compose file, provisioning and environment are read, not run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.errors import Refused
from broker.loading import load
from monitoring.grafana.board import FOLDER
from monitoring.prometheus_api import Prometheus
from monitoring.recipe import ViewRecipe
from monitoring.stack import COMPOSE, GRAFANA, PROVISIONING, Programs, followed, services
from tests.deploy.composition import read
from tests.monitoring.fabricated import Run
from tests.monitoring.test_recipe import users_recipe
from tests.ports import free_port
from tests.system.pipeline import wait_until
from tests.system.processes import ROOT

yaml = pytest.importorskip("yaml")
PROMETHEUS, GRAFANA_BINARY, OLD_GRAFANA, DOCKER = (
    "/bin/prometheus",
    "/bin/grafana",
    "/bin/grafana-server",
    "/bin/docker",
)


def recipe() -> ViewRecipe:
    return load(ViewRecipe, ROOT / "recipes/tiny.toml", [], {})


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        (Programs(PROMETHEUS, GRAFANA_BINARY, None), [PROMETHEUS, GRAFANA_BINARY]),
        (Programs(PROMETHEUS, GRAFANA_BINARY, DOCKER), [PROMETHEUS, GRAFANA_BINARY]),
        (Programs(PROMETHEUS, OLD_GRAFANA, None), [PROMETHEUS, OLD_GRAFANA]),
        (Programs(PROMETHEUS, None, DOCKER), [DOCKER]),
        (Programs(None, GRAFANA_BINARY, DOCKER), [DOCKER]),
        (Programs(PROMETHEUS, None, None), [PROMETHEUS]),
    ],
)
def test_what_is_installed_is_used(tmp_path: Path, programs: Programs, expected: list[str]) -> None:
    assert [service.command[0] for service in services(programs, tmp_path, recipe())] == expected


def test_with_nothing_to_start_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="neither prometheus nor docker: install one"):
        list(services(Programs(None, GRAFANA_BINARY, None), tmp_path, recipe()))


def test_the_newer_grafana_has_a_verb_and_the_older_none(tmp_path: Path) -> None:
    for binary, verb in ((GRAFANA_BINARY, "server"), (OLD_GRAFANA, "--homepath")):
        *_, grafana = services(Programs(PROMETHEUS, binary, None), tmp_path, recipe())
        assert grafana.command[1] == verb
        assert Path(grafana.environment["GF_PATHS_PROVISIONING"]).is_dir()
        assert Path(grafana.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()


def test_the_recipe_is_that_of_the_present_run_once_there_is_one(tmp_path: Path) -> None:
    mine = users_recipe(tmp_path)
    stated = load(ViewRecipe, mine, environ={})
    assert followed(mine, stated) is stated
    run = Run(tmp_path, name="demo")
    assert followed(mine, stated).run.name == run.folder.path.name
    assert followed(mine, stated) != stated


# -- Grafana, as far as it can be seen without one --------------------------------------------------------------------


def compose() -> Any:
    return read(COMPOSE, environ={"HEADRACE_MONITORING": "/monitoring"})


def variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{(\w+)", text))


def test_the_compose_file_pins_versions_and_listens_on_loopback() -> None:
    found = compose()["services"]
    assert found.keys() == {"prometheus", "grafana"}
    for service in found.values():
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
        assert service["network_mode"] == "host"
    assert any("--web.listen-address=127.0.0.1:" in word for word in found["prometheus"]["command"])
    assert GRAFANA.items() <= found["grafana"]["environment"].items()
    assert GRAFANA["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_grafana_s_schema_is_that_of_the_sdk_the_dashboards_are_made_with() -> None:
    pin = next(line for line in (ROOT / "requirements/dev.txt").read_text().splitlines() if "grafana" in line)
    assert compose()["services"]["grafana"]["image"].split(":")[1] == pin.split("!")[1]


def test_what_the_compose_file_mounts_is_there() -> None:
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE.parent / source).is_dir(), volume


def test_both_ways_of_starting_grafana_fill_in_what_provisioning_asks_for(tmp_path: Path) -> None:
    asked = set[str]()
    for file in PROVISIONING.rglob("*.yml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1
        asked |= variables(file.read_text())
    assert asked == {"HEADRACE_DASHBOARDS", "HEADRACE_PROMETHEUS_URL"}
    *_, native = services(Programs(PROMETHEUS, GRAFANA_BINARY, None), tmp_path, recipe())
    assert asked <= native.environment.keys()
    assert asked <= compose()["services"]["grafana"]["environment"].keys()
    (contained,) = services(Programs(None, None, DOCKER), tmp_path, recipe())
    assert variables(COMPOSE.read_text()) == contained.environment.keys()
    assert native.environment["HEADRACE_DASHBOARDS"] == str(FOLDER)


def test_the_dashboards_find_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/headrace.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)


# -- the half that can be had -----------------------------------------------------------------------------------------


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`make monitoring` where Prometheus is all there is; without it the test is skipped."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("Prometheus is not installed: `apt install prometheus`")
    (folder / "bin").mkdir()
    (folder / "bin" / "prometheus").symlink_to(binary)
    command = [sys.executable, "-m", "monitoring.stack", *arguments]
    environment = {**os.environ, "PATH": str(folder / "bin")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_debian_s_prometheus_follows_the_run_and_leaves_with_us(tmp_path: Path) -> None:
    port, mine = free_port(), users_recipe(tmp_path)
    with started(tmp_path, str(mine), "--monitoring.prometheus_port", str(port)) as process:
        assert process.stdout
        assert process.stdout.readline().split() == ["Prometheus", f"http://127.0.0.1:{port}"]
        prometheus = Prometheus(f"http://127.0.0.1:{port}")

        def runs() -> set[str]:
            return {series.labels["run"] for series in prometheus.now("up")}

        def jobs(run: str) -> set[str]:
            return {series.labels["job"] for series in prometheus.now(f'up{{run="{run}"}}')}

        wait_until(lambda: runs() == {"demo"}, "the run of the recipe is scraped")
        for name in ("demo", "demo-2"):
            ports = {f"{role}_port": free_port() for role in ("learner", "generator", "exporter")}
            Run(tmp_path, name=name, sections={"monitoring": ports})
        wait_until(
            lambda: jobs("demo-2") == {"learner", "generator", "exporter"}, "so is all of the next one of its name"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with pytest.raises(Refused, match="no Prometheus answers"):
        prometheus.now("up")
    assert (tmp_path / ".monitoring" / "data").is_dir()


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started(tmp_path, str(users_recipe(tmp_path)), "--monitoring.prometheus_port", port) as process:
            assert process.wait(30) == 2
            assert process.stderr
            (line,) = process.stderr.read().splitlines()
    assert line.startswith(f"headrace: Prometheus cannot have port {port}: ")
