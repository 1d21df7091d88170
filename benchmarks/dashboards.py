"""`python -m benchmarks.dashboards`: pictures of the dashboards, of a small run under a real Prometheus.

Invariant: what is drawn is what Prometheus answers for a run that really took place. Refuses to know charts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from monitoring.files import replace_file
from monitoring.grafana.board import committed
from monitoring.grafana.render import page_of, png
from tests.system.pipeline import wait_until
from tests.system.scraped import ScrapedRun, engine_flags, flags
from tests.system.teaching import taught_to_add

WINDOW = "20s"


def main() -> None:
    """Entry point: five minutes."""
    parser = argparse.ArgumentParser(prog="benchmarks.dashboards", description="pictures of the dashboards")
    parser.add_argument("--seconds", type=float, default=150.0, help="of the run, from its first step")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = taught_to_add(Path(temporary) / "models")
        lively = ["--learner.learning_rate", "3e-4", "--sampling.group_size", "8", "--generator.count", "2"]
        lively += ["--generator.threads", "1", *engine_flags()]
        with ScrapedRun(Path(temporary) / "runs", [*flags(model), *lively]) as run:
            run.start_all()
            lasted = f'time() - min_over_time(timestamp(headrace_learner_step{{run="{run.name}"}} > 0)[1d:1s])'
            wait_until(lambda: run.asked.now(f"{lasted} > {options.seconds}"), "it has gone on for long enough", 900)
            page = page_of(run.asked, run.name)
            for dashboard in committed():
                path = options.out / f"dashboard-{dashboard.name}.png"
                values = {"job": ".+", "instance": ".+", "run": run.name, "window": WINDOW}
                replace_file(path, png(dashboard, run.asked, page, values))
                print(path)


if __name__ == "__main__":
    main()
