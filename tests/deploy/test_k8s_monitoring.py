"""What the manifests tell Prometheus, Grafana and KEDA: our rules and dashboards as they are, the law of scaling."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.errors import Refused
from deploy.manifests import TARGET, prometheus_rules
from monitoring.grafana.__main__ import FOLDER
from tests.deploy.k8s.build import Manifest, manifests, needs_kubectl, of
from tests.monitoring.promql import OURS, uses
from tests.system.pipeline import ROOT

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: apt install prometheus)")


def run(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trigger(overlay: str) -> Manifest:
    found: Manifest = of(manifests(overlay), "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]
    return found


def test_the_rules_are_those_of_prometheus() -> None:
    assert TARGET.read_text(encoding="utf-8") == prometheus_rules(), "make manifests"


def test_a_file_that_is_laid_out_otherwise_is_refused(tmp_path: Path) -> None:
    for name in ("rules", "alerts"):
        (tmp_path / f"{name}.yml").write_text("namespace: x\ngroups:\n  - name: a\n")
    with pytest.raises(Refused, match="does not begin with its groups"):
        prometheus_rules(tmp_path)


@needs_kubectl
@promtool
@pytest.mark.parametrize("name", ["rules", "alerts"])
def test_the_operator_is_given_every_rule(name: str, tmp_path: Path) -> None:
    source = yaml.safe_load((ROOT / "monitoring" / "prometheus" / f"{name}.yml").read_text(encoding="utf-8"))
    (found,) = [one for one in of(manifests("gpu"), "PrometheusRule") if one["metadata"]["name"] == f"headrace-{name}"]
    assert _unfolded(found["spec"]) == _unfolded(source)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(found["spec"]))
    count = sum(len(group["rules"]) for group in source["groups"])
    assert f"SUCCESS: {count} rules found" in run("check", "rules", tmp_path / "rules.yml")


def _unfolded(document: Any) -> Any:
    """Without the white space that kustomize adds to folded lines."""
    return json.loads(re.sub(r"(\\n|\s)+", " ", json.dumps(document)))


@needs_kubectl
def test_the_dashboards_are_those_of_grafana() -> None:
    found = [one for one in of(manifests("gpu"), "ConfigMap") if one["metadata"]["labels"].get("grafana_dashboard")]
    texts = {name: text for one in found for name, text in one["data"].items()}
    assert {name: json.loads(text) for name, text in texts.items()} == {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")
    }
    assert (
        max(len(text.encode()) for text in texts.values()) < 1 << 18
    )  # kubectl notes what it applied in an annotation


@needs_kubectl
def test_what_autoscaling_asks_for_exists() -> None:
    assert {name for name, _ in uses(trigger("gpu")["query"])} <= OURS.keys()


@needs_kubectl
@promtool
@pytest.mark.parametrize(
    ("claimed", "finished", "generators"),
    [
        ("80x20", "0x20", [6]),  # 80 / (0.85 × 16) = 5.9
        ("30+5x20", "0x20", [8]),  # of the last ten minutes: in the mean 105 or so; the peak of 130 would be ten
        ("0x20", "0x20", [1]),  # a run that has not begun
        ("80x20", "1x20", [0]),  # one that is over
        ("80x20", "_x20", []),  # an exporter that is silent: no figure, and nothing changes
    ],
)
def test_as_many_generators_as_are_claimed_for(
    claimed: str, finished: str, generators: list[int], tmp_path: Path
) -> None:
    found = trigger("gpu")
    demand = f"ceil(({found['query']}) / {found['threshold']})"  # as the autoscaler does with an average value
    figures = {
        'headrace_ledger_located_tickets{namespace="headrace",kind="train",place="claimed"}': claimed,
        'headrace_ledger_located_tickets{namespace="headrace",kind="eval",place="claimed"}': "500x20",
        'headrace_ledger_located_tickets{namespace="headrace",kind="train",place="waiting"}': "500x20",
        'headrace_ledger_located_tickets{namespace="another",kind="train",place="claimed"}': "500x20",
        'headrace_run_finished{namespace="headrace"}': finished,
        'headrace_run_finished{namespace="another"}': "1x20",
    }
    expected = [{"labels": "{}", "value": number} for number in generators]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in figures.items()],
        "promql_expr_test": [{"expr": demand, "eval_time": "20m", "exp_samples": expected}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": [test]}))
    run("test", "rules", tmp_path / "test.yml")
