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
    source = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    recorded = {rule["record"] for group in source["groups"] for rule in group["rules"]}
    assert {name for name, _ in uses(trigger("gpu")["query"])} <= OURS.keys() | recorded


@needs_kubectl
@promtool
@pytest.mark.parametrize(
    ("claimed", "waiting", "starved", "finished", "slots", "generators"),
    [
        ("80x60", "0x60", "0x60", "0x60", "16x60", [6]),  # 80 / (0.85 × 16) = 5.9
        ("80x60", "9x60", "0+15x60", "0x60", "16x60", [12]),  # a learner that waits half of its time needs twice that
        ("0x60", "9x60", "0x60", "0x60", "16x60", [1]),  # nothing is claimed yet
        ("0x60", "9x60", "_x60", "0x60", "_x60", [1]),  # and nobody is there who could
        ("80x60", "0x60", "0x60", "1x60", "16x60", [0]),  # the run is over
        ("80x60", "0x60", "0x60", "_x60", "16x60", []),  # the exporter is silent: no figure, and nothing changes
    ],
)
def test_as_many_generators_as_the_learner_needs(
    claimed: str, waiting: str, starved: str, finished: str, slots: str, generators: list[int], tmp_path: Path
) -> None:
    found = trigger("gpu")
    demand = f"ceil(({found['query']}) / {found['threshold']})"  # as the autoscaler does with an average value
    ours, other = 'namespace="headrace",run="a"', 'namespace="another",run="b"'
    tickets = 'headrace_ledger_located_tickets{%s,kind="train",place="%s"}'
    figures = {
        tickets % (ours, "claimed"): claimed,
        tickets % (ours, "waiting"): waiting,
        tickets % (other, "claimed"): "500x60",
        f'headrace_learner_phase_seconds_total{{{ours},phase="wait"}}': starved,
        f"headrace_generator_slots{{{ours}}}": slots,
        f"headrace_generator_slots{{{other}}}": "16x60",
        f"headrace_run_finished{{{ours}}}": finished,
        f"headrace_run_finished{{{other}}}": "0x60",
    }
    test = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in figures.items()],
        "promql_expr_test": [
            {"expr": demand, "eval_time": "25m", "exp_samples": [{"labels": "{}", "value": n} for n in generators]}
        ],
    }
    rules = str(ROOT / "monitoring" / "prometheus" / "rules.yml")
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "30s", "tests": [test]})
    )
    run("test", "rules", tmp_path / "test.yml")
