"""Every name that a dashboard may ask for, and what a query is made of once its variables are filled in."""

from __future__ import annotations

import time

import redis

from broker.keys import Keys
from monitoring.metrics import ExporterMetrics, GeneratorMetrics, LearnerMetrics
from monitoring.reading import Reading

# vLLM's own names, which it puts beside ours.
VLLM: dict[str, tuple[str, ...]] = {
    "counter": (
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prompt_tokens_total",
    ),
    "gauge": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
}
PROMETHEUS = {"up": "gauge", "ALERTS": "gauge"}  # what it makes by itself


def series_of(name: str, kind: str) -> list[str]:
    """The names under which a metric can be asked for."""
    return [f"{name}_{part}" for part in ("bucket", "sum", "count")] if kind == "histogram" else [name]


def vllm() -> dict[str, str]:
    """Name of a series → counter, gauge or histogram, of vLLM's."""
    return {series: kind for kind, names in VLLM.items() for name in names for series in series_of(name, kind)}


def catalogue(client: redis.Redis, keys: Keys) -> dict[str, str]:
    """The same of those that the processes make; the exporter's are there once it has read something."""
    exporter = ExporterMetrics()
    exporter.observe(Reading.take(client, keys, time.time()))
    families = [f for role in (GeneratorMetrics(), LearnerMetrics(), exporter) for f in role.registry.collect()]
    found: dict[str, str] = {}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found |= dict.fromkeys(series_of(name, family.type), family.type)
    return found


VALUES = {"job": ".+", "run": "tiny", "instance": ".+", "window": "1m", "datasource": "prometheus"}
