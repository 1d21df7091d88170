"""`python -m monitoring.grafana`: writes the dashboards' JSON anew.

Invariant: what is in `dashboards/` is what the code says, and nothing else is there. Refuses to know any chart.
"""

from __future__ import annotations

from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from monitoring.files import replace_file
from monitoring.grafana.broker import BROKER
from monitoring.grafana.generators import GENERATORS
from monitoring.grafana.learner import LEARNER
from monitoring.grafana.pipeline import PIPELINE

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (PIPELINE, LEARNER, GENERATORS, BROKER)
PIN = "grafana-foundation-sdk==1769699379!11.6.0"


def documents() -> dict[str, str]:
    """File name → JSON. Raises `Refused` without the SDK."""
    try:
        from monitoring.grafana.build import document
    except ModuleNotFoundError as error:
        raise Refused(f"no module {error.name}", f".venv/bin/pip install --no-deps '{PIN}'") from None
    return {f"{board.name}.json": document(board) for board in BOARDS}


@guarded
def main() -> None:
    """Entry point."""
    found = documents()
    for stale in set(FOLDER.glob("*.json")) - {FOLDER / name for name in found}:
        stale.unlink()
    FOLDER.mkdir(exist_ok=True)
    for name, text in found.items():
        replace_file(FOLDER / name, text.encode())
    print(f"{len(found)} dashboards in {FOLDER.parent.parent.name}/grafana/dashboards")


if __name__ == "__main__":
    main()
