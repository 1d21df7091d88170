"""Rules and alerts: promtool reads them, each alert is seen to fire and to clear, and all that is named exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.promql import OF_COUNTERS, OF_VLLM, OURS, uses
from tests.system.pipeline import ROOT

yaml = pytest.importorskip("yaml")
FOLDER = ROOT / "monitoring" / "prometheus"
TESTS = sorted((ROOT / "tests" / "monitoring" / "prometheus").glob("*.yml"))
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
PROMISED = {
    "LearnerStarved",
    "GeneratorsIdle",
    "StalenessAtItsBound",
    "EffectiveSampleSizeLow",
    "RewardCollapsed",
    "LedgerOutOfBalance",
    "RefreshFailing",
    "DeadLetters",
    "RedisNearItsMemory",
    "NoStep",
    "GeneratorLost",
}
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: apt install prometheus)")


def rules(name: str) -> list[dict[str, Any]]:
    document = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in rules("rules.yml")}
KINDS = OURS | OF_VLLM


def run(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wrong(expression: str) -> list[str]:
    """What an expression names that is not there, and counters whose level it looks at."""
    found = []
    for name, function in uses(expression):
        if name not in KINDS and name not in RECORDED:
            found.append(f"{name} does not exist")
        counts = KINDS.get(name) in ("counter", "histogram")
        if counts and function not in OF_COUNTERS:
            found.append(f"{name} outside of {' and '.join(OF_COUNTERS)}")
        if not counts and function in OF_COUNTERS:
            found.append(f"{function} of {name}, which is no counter")
    return found


# -- promtool ---------------------------------------------------------------------------------------------------------


@promtool
def test_the_configuration_and_its_rules_are_valid() -> None:
    assert "2 rule files found" in run("check", "config", FOLDER / "prometheus.yml")
    for name, count in (("rules.yml", len(RECORDED)), ("alerts.yml", len(ALERTS))):
        assert f"SUCCESS: {count} rules found" in run("check", "rules", FOLDER / name)


@promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_do_what_they_say(path: Path) -> None:
    run("test", "rules", path)


def test_every_alert_is_seen_quiet_firing_and_quiet_again() -> None:
    seen: dict[str, list[bool]] = {name: [] for name in ALERTS}
    for path in TESTS:
        for one in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for asked in sorted(one.get("alert_rule_test", []), key=lambda a: int(a["eval_time"].removesuffix("m"))):
                seen[asked["alertname"]].append(bool(asked["exp_alerts"]))
    for name, fires in seen.items():
        assert ", False, True, False" in f", {str(fires)[1:-1]}", name


def test_every_recorded_name_is_used_or_tested() -> None:
    used = {name for alert in ALERTS.values() for name, _ in uses(alert["expr"])}
    tested = {name for path in TESTS for name, _ in uses(path.read_text(encoding="utf-8").replace("'", ""))}
    assert set(RECORDED) <= used | tested


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [*RECORDED.values(), *ALERTS.values()], ids=lambda rule: rule.get("alert") or rule["record"]
)
def test_a_rule_names_what_there_is_and_looks_at_counters_by_their_growth(rule: dict[str, Any]) -> None:
    assert list(uses(rule["expr"])), "it is about something"
    assert wrong(rule["expr"]) == []


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("headrace_learner_rewards > 1", "headrace_learner_rewards does not exist"),
        ("headrace:reward:mean1h", "headrace:reward:mean1h does not exist"),
        ("sum(headrace_learner_tokens_total)", "headrace_learner_tokens_total outside of"),
        ("rate(headrace_learner_loss[5m])", "rate of headrace_learner_loss, which is no counter"),
        ('increase(headrace_generator_tokens_total{kind="headrace_x"}[5m])', ""),
    ],
)
def test_a_wrong_expression_is_seen(expression: str, complaint: str) -> None:
    found = wrong(expression)
    assert found[0].startswith(complaint) if complaint else not found


@pytest.mark.parametrize("page", ["README.md", "docs/runbooks.md", "docs/autoscaling.md", "CONTRIBUTING.md"])
def test_every_metric_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    unknown = {name for name, _ in uses(text)} - KINDS.keys() - RECORDED.keys()
    assert {name for name in unknown if not name.endswith("_")} == set(), "a name that ends in _ is a prefix"


# -- what an alert says -----------------------------------------------------------------------------------------------


def test_all_that_was_promised_alarms() -> None:
    assert set(ALERTS) >= PROMISED


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_what_and_where_to_look(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+m", alert["for"])
    said = alert["annotations"]
    assert said.keys() == {"summary", "description", "runbook_url"}
    assert said["summary"].endswith(".")
    assert said["description"].endswith((".", "for."))
    assert said["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    sections = re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)[1:]
    named = {section.splitlines()[0]: " ".join(section.splitlines()[1:]) for section in sections}
    assert set(named) == set(ALERTS)
    assert len(sections) == len(named)
    assert all(len(text) > 200 for text in named.values()), "a paragraph, not a promise of one"
    for target in re.findall(r"\]\(#([\w-]+)\)", RUNBOOKS):
        assert target in {name.lower() for name in ALERTS}, target
