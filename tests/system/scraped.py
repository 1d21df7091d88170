"""A real run under Debian's real Prometheus: what a person who looks at a dashboard would see of it."""

from __future__ import annotations

from pathlib import Path

from broker.loading import load
from monitoring.prometheus_api import Prometheus
from monitoring.recipe import ViewRecipe
from monitoring.scrape import targets
from tests.monitoring.scraping import SCRAPE_SECONDS, Scraping
from tests.ports import free_port
from tests.system.pipeline import ROOT, Pipeline

# Evaluations by task and level are told apart where there are several.
MIXTURE = """\
[task]
name = "mixture"

[[task.parts]]
name = "addition"
held_out = 10
weight = 4.0

[[task.parts]]
name = "addition"
digits = 2
held_out = 10
"""


class ScrapedRun(Pipeline):
    """Learner, a generator, the exporter, and a Prometheus that scrapes them as `make monitoring` would."""

    def __enter__(self) -> ScrapedRun:
        super().__enter__()
        self.recipe = str(recipe(self.folder))
        ports = {name: str(free_port()) for name in ("learner", "generator", "exporter")}
        self.flags = [*self.flags, *(f"--monitoring.{n}_port={p}" for n, p in ports.items())]
        self.flags += ["--monitoring.exporter_seconds", str(SCRAPE_SECONDS)]
        self.view = load(ViewRecipe, Path(self.recipe), self.flags, {})
        self.scraping = Scraping(self.folder / "monitoring")
        self.scraping.point(*targets(self.view))
        self.scraping.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.scraping.service.stop()

    @property
    def asked(self) -> Prometheus:
        """Its API."""
        return self.scraping.asked

    @property
    def jobs(self) -> set[str]:
        """Of the processes that have answered it."""
        return {series.labels["job"] for series in self.asked.now("up == 1")}

    def start_all(self) -> ScrapedRun:
        """Everything that `make up` starts, on a Redis with a limit."""
        self.client.config_set("maxmemory", 1 << 30)
        self.learner()
        for number in range(self.view.generator.count):
            port = self.view.monitoring.generator_port + number
            self.generator(f"generator-{number}", "--monitoring.generator_port", str(port))
        self.start("monitoring.exporter", "exporter")
        return self


def recipe(folder: Path) -> Path:
    """The tiny one, with a mixture for its task."""
    text = (ROOT / "recipes/tiny.toml").read_text(encoding="utf-8")
    before, after = text.split("[task]\n")
    path = folder / "tiny.toml"
    path.write_text(f"{before}{MIXTURE}\n[sampling]{after.partition('[sampling]')[2]}", encoding="utf-8")
    return path


def flags(model: Path) -> list[str]:
    """A run that has something to show on every panel that a CPU and the transformers engine can fill."""
    return [
        *("--run.model", str(model), "--run.steps", "100000", "--run.max_staleness", "6"),
        *("--learner.curriculum", "skip", "--learner.eval_every", "20", "--learner.stop_when_solved", "false"),
        *("--objective.kl", "k3", "--objective.kl_coefficient", "0.01", "--learner.peak_flops", "1e11"),
    ]


def engine_flags() -> list[str]:
    """The same with vLLM."""
    return ["--generator.engine", "vllm", "--generator.kv_cache_gib", "0.25", "--generator.enforce_eager", "true"]
