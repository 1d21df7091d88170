"""`python -m monitoring.stack RECIPE`: Prometheus and Grafana beside a run, with our rules and dashboards.

Invariant: both listen on loopback alone, and follow the run that goes on under the recipe's name: `demo`, then
`demo-2`. Programs of this machine are used where both are installed, else the compose file, else Prometheus alone.
Refuses to know what is shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from broker.loading import load
from monitoring.grafana.board import FOLDER as DASHBOARDS
from monitoring.recipe import ViewRecipe, folder_of, resolved
from monitoring.scrape import ScrapeFolder, targets
from monitoring.services import HOST, Service, prometheus
from monitoring.signals import Signals

SCRAPE_SECONDS = 5.0
COMPOSE = Path(__file__).parents[1] / "deploy" / "compose.monitoring.yml"
PROVISIONING = DASHBOARDS.parent / "provisioning"
HOME_DASHBOARD = "pipeline.json"
# Whoever reaches loopback may look; there is no user who could change anything, and nothing is sent anywhere.
GRAFANA = {
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    "GF_ANALYTICS_REPORTING_ENABLED": "false",
    "GF_AUTH_ANONYMOUS_ENABLED": "true",
    "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
    "GF_AUTH_DISABLE_LOGIN_FORM": "true",
    "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
    "GF_SERVER_HTTP_ADDR": HOST,
}


@dataclass(frozen=True)
class Programs:
    """What this machine has; None is absent."""

    prometheus: str | None
    grafana: str | None
    docker: str | None

    @staticmethod
    def found() -> Programs:
        """On the path; `grafana-server` is what older packages call it."""
        grafana = shutil.which("grafana") or shutil.which("grafana-server")
        return Programs(shutil.which("prometheus"), grafana, shutil.which("docker"))


def grafana(binary: str, folder: Path, recipe: ViewRecipe) -> Service:
    """A Grafana of this machine, provisioned from the checkout."""
    port = recipe.monitoring.grafana_port
    environment = {
        **GRAFANA,
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(DASHBOARDS / HOME_DASHBOARD),
        "GF_PATHS_DATA": str(folder.resolve()),
        "GF_PATHS_LOGS": str(folder.resolve()),
        "GF_PATHS_PROVISIONING": str(PROVISIONING),
        "GF_SERVER_HTTP_PORT": str(port),
        "HEADRACE_DASHBOARDS": str(DASHBOARDS),
        "HEADRACE_PROMETHEUS_URL": f"http://{HOST}:{recipe.monitoring.prometheus_port}",
    }
    home = os.environ.get("GF_PATHS_HOME", "/usr/share/grafana")
    verb = ["server"] if Path(binary).name == "grafana" else []
    command = [binary, *verb, "--homepath", home]
    return Service("Grafana", command, folder.with_name("grafana.log"), port, "/api/health", environment)


def compose(docker: str, folder: Path, recipe: ViewRecipe) -> Service:
    """Both in containers on the host's network; the first start downloads them."""
    settings = recipe.monitoring
    environment = {
        "HEADRACE_MONITORING": str(folder.resolve()),
        "HEADRACE_PROMETHEUS_PORT": str(settings.prometheus_port),
        "HEADRACE_GRAFANA_PORT": str(settings.grafana_port),
    }
    command = [docker, "compose", "--file", str(COMPOSE), "up", "--no-color"]
    log = folder / "compose.log"
    return Service("Grafana", command, log, settings.grafana_port, "/api/health", environment, ready_seconds=600.0)


def services(programs: Programs, folder: Path, recipe: ViewRecipe) -> Iterator[Service]:
    """What is to be started, in order. Raises `Refused` where nothing can be."""
    native = programs.prometheus and (programs.grafana or not programs.docker)
    if native and programs.prometheus:
        configuration = ScrapeFolder(folder).configuration
        yield prometheus(programs.prometheus, configuration, folder / "data", recipe.monitoring.prometheus_port)
        if programs.grafana:
            yield grafana(programs.grafana, folder / "grafana", recipe)
    elif programs.docker:
        yield compose(programs.docker, folder, recipe)
    else:
        raise Refused("there is neither prometheus nor docker", "install one of them (apt install prometheus)")


def followed(path: Path, recipe: ViewRecipe) -> ViewRecipe:
    """The recipe as its present run was given it; before there is one, as it stands."""
    try:
        return resolved(folder_of(path, recipe))
    except Refused:
        return recipe


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.stack", description="Prometheus and Grafana beside a run")
    parser.add_argument("recipe", type=Path)
    options, flags = parser.parse_known_args()
    recipe = load(ViewRecipe, options.recipe, flags)
    folder, programs = recipe.run.directory / ".monitoring", Programs.found()
    scraped = ScrapeFolder(folder)
    scraped.write(SCRAPE_SECONDS)
    with Signals() as signals, ExitStack() as running:
        scraped.point(targets(followed(options.recipe, recipe)))
        started = [running.enter_context(service) for service in services(programs, folder, recipe)]
        for service in started:
            print(f"{service.name:<11}{service.url}", flush=True)
        if not any(service.name == "Grafana" for service in started):
            print("Grafana is not installed here (nor docker): its dashboards are in monitoring/grafana", flush=True)
        while not signals.wait(SCRAPE_SECONDS):
            scraped.point(targets(followed(options.recipe, recipe)))
            for service in started:
                if service.ended:
                    raise Refused(f"{service.name} has ended", service.last_words)


if __name__ == "__main__":
    main()
