"""`python -m deploy.manifests`: writes anew what the Kubernetes manifests repeat, the rules of Prometheus.

Invariant: the operator's PrometheusRules hold the groups of `monitoring/prometheus/{rules,alerts}.yml`, line by line,
comments included; one each, since in one the names of groups would clash. Refuses to know what a rule says.
"""

from __future__ import annotations

from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "monitoring" / "prometheus"
TARGET = ROOT / "deploy" / "k8s" / "components" / "monitoring" / "rules.yaml"
GROUPS = "groups:\n"
COMMENT = "# Generated from monitoring/prometheus/{rules,alerts}.yml: change those, then `make manifests`.\n"
HEAD = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: headrace-%s
spec:
  groups:
"""


def prometheus_rules(folder: Path = SOURCES) -> str:
    """Both as YAML. Raises `Refused`."""
    return COMMENT + "---\n".join(HEAD % name + _groups(folder / f"{name}.yml") for name in ("rules", "alerts"))


def _groups(path: Path) -> str:
    """What stands below `groups:`, two columns further right."""
    head, found, groups = path.read_text(encoding="utf-8").partition(GROUPS)
    if not found or any(line and not line.startswith("#") for line in head.splitlines()):
        raise Refused(f"{path} does not begin with its groups", "write `groups:` on a line, and all rules below it")
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


@guarded
def main() -> None:
    """Entry point."""
    TARGET.write_text(prometheus_rules(), encoding="utf-8")
    print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
