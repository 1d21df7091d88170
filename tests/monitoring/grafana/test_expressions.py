"""Selectors go where metrics are, and nowhere else."""

from __future__ import annotations

import pytest

from monitoring.grafana.expressions import filled, names, scoped

RUN = 'job=~"$job",run="$run"'


@pytest.mark.parametrize(
    ("bare", "expected"),
    [
        ("headrace_learner_step", f"headrace_learner_step{{{RUN}}}"),
        ('up{role="learner"}', f'up{{{RUN},role="learner"}}'),
        ("sum by (le) (rate(headrace_x_bucket[$window]))", f"sum by (le) (rate(headrace_x_bucket{{{RUN}}}[$window]))"),
        ("vllm:kv_cache_usage_perc > 0", f"vllm:kv_cache_usage_perc{{{RUN}}} > 0"),
        ('count(ALERTS{alertstate="firing"})', 'count(ALERTS{alertstate="firing"})'),
        ("time() - 3 * group_up", "time() - 3 * group_up"),
    ],
)
def test_every_metric_is_confined_to_a_run(bare: str, expected: str) -> None:
    assert scoped(bare) == expected


def test_generators_alone_can_be_chosen_one_by_one() -> None:
    found = scoped("headrace_generator_slots / headrace_policy_version", by_instance=True)
    assert found == f'headrace_generator_slots{{{RUN},instance=~"$instance"}} / headrace_policy_version{{{RUN}}}'


def test_variables_are_filled_in_however_they_are_written() -> None:
    text = 'x{run="$run",job=~"${job}"}[$window] $runs $other'
    filled_in = filled(text, {"run": "demo-2", "job": ".+", "window": "5m"})
    assert filled_in == 'x{run="demo-2",job=~".+"}[5m] $runs $other'


def test_names_are_those_of_metrics_and_not_of_labels_or_values() -> None:
    expression = 'sum by (up) (headrace_a_total{reason="headrace_b"}) / on(headrace_c) group_left vllm:d and up'
    assert names([expression]) == {"headrace_a_total", "vllm:d", "up"}
