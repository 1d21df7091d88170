"""`python -m deploy.manifests`: writes anew what the Kubernetes manifests repeat of other files: the rules of Prometheus.

Invariant: the operator's PrometheusRule holds the groups of `monitoring/prometheus/{rules,alerts}.yml`, line by line,
comments included. Refuses to know what a rule says.
"""

from __future__ import annotations

from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("rules.yml", "alerts.yml")
TARGET = ROOT / "deploy" / "k8s" / "components" / "monitoring" / "rules.yaml"
GROUPS = "groups:\n"
HEAD = """\
# Generated from monitoring/prometheus/{rules,alerts}.yml: change those, then `make manifests`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: headrace
spec:
  groups:
"""


def prometheus_rule(folder: Path = ROOT / "monitoring" / "prometheus") -> str:
    """The PrometheusRule as YAML. Raises `Refused`."""
    return HEAD + "".join(_groups(folder / name) for name in SOURCES)


def _groups(path: Path) -> str:
    """What stands below `groups:`, two columns further right."""
    head, found, groups = path.read_text(encoding="utf-8").partition(GROUPS)
    if not found or any(line and not line.startswith("#") for line in head.splitlines()):
        raise Refused(f"{path} does not begin with its groups", "write `groups:` on a line, and all rules below it")
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


@guarded
def main() -> None:
    """Entry point."""
    TARGET.write_text(prometheus_rule(), encoding="utf-8")
    print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
