"""The catalogue is what processes show: every metric, its type, its labels, its help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.ledger import Balance
from broker.schema import KINDS
from monitoring.catalogue import VLLM, catalogue
from monitoring.hearsay import PROCESS, RATES
from monitoring.metrics import ExporterMetrics
from monitoring.points import NAMES, PREFIX
from monitoring.reading import Reading, Stream
from monitoring.register import Described
from monitoring.watch import GENERATOR_COUNTERS
from tests.monitoring.test_metrics import generator, learner
from tests.system.pipeline import ROOT


def nothing() -> Reading:
    """A Redis with an empty run, as the exporter reads it."""
    empty: frozenset[str] = frozenset()
    streams = {(name, kind): Stream(0, 0, 0.0) for name in ("tickets", "rollouts") for kind in KINDS}
    return Reading(
        balances={kind: Balance(0, {}, empty, empty, empty, empty) for kind in KINDS},
        ages=dict.fromkeys(KINDS, 0.0),
        streams=streams,
        dead_letters=0,
        dead_letters_dropped=0,
        requests=0,
        policy_version=0,
        late=0,
        live_generators=0,
        finished=False,
        used_memory=1,
        maxmemory=0,
    )


def exporter() -> ExporterMetrics:
    metrics = ExporterMetrics()
    metrics.observe(nothing())
    return metrics


def described(role: str) -> list[Described]:
    return [d for d in catalogue() if d.name.startswith(f"headrace_{role}_")]


@pytest.mark.parametrize("role", ["generator", "learner", "exporter"])
def test_what_is_shown_is_what_is_described(role: str, tmp_path: Path) -> None:
    metrics: Any = {"generator": generator, "exporter": exporter}.get(role, lambda: learner(tmp_path))()
    shown = {family.name: family for family in metrics.registry.collect()}
    assert [d.name.removesuffix("_total") for d in metrics.described] == list(dict.fromkeys(shown)), "in this order"
    for one in metrics.described:
        family = shown[one.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (one.kind, one.help)
        names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        assert names == set(one.series)
        assert {*one.labels} == {label for s in family.samples for label in s.labels} - {"le"}


def test_the_catalogue_is_all_roles_and_no_name_comes_twice() -> None:
    names = [one.name for one in catalogue()]
    assert len(names) == len(set(names)) > 100
    assert {name.split("_")[1] for name in names} > {"generator", "learner", "exporter", "ledger", "stream", "redis"}
    assert all(one.help.endswith(".") for one in [*catalogue(), *VLLM])


def test_it_can_be_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.catalogue"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(catalogue()) + len(VLLM)
    assert "headrace_learner_groups_total{verdict}  (counter)  Groups by verdict." in lines


def test_what_the_terminal_view_asks_for_exists() -> None:
    series = {name: one for one in catalogue() for name in one.series}
    for name, label in NAMES.items():
        assert label in ("", "le", *series[f"{PREFIX}{name}"].labels)
    asked = {f"headrace_generator_{name}" for name in RATES} | {f"headrace_{name}" for name in GENERATOR_COUNTERS}
    asked |= {f"headrace_{role}_{name}" for role in ("learner", "generator") for name in PROCESS}
    only = {f"headrace_learner_{name}" for name in ("slots", "in_flight_groups")}  # what a generator alone has
    for file in ("panel", "sides", "lines", "watch", "afar", "hearsay", "sight"):
        source = (ROOT / "monitoring" / f"{file}.py").read_text()
        asked |= {f"headrace_{name}" for name in re.findall(r'figure\("(\w+)"\)', source)}
        asked |= set(re.findall(r"headrace_(?:learner|generator|run|ledger|redis|exporter)_[a-z_]*[a-z]\b", source))
    assert len(asked) > 15
    assert asked - only <= series.keys()
