"""`python -m monitoring.catalogue`: every metric by name, type, labels and help, without running anything.

Invariant: it is read from the very objects that processes make, so it cannot fall behind them. Refuses to know what a
figure was at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.metrics import ExporterMetrics, GeneratorMetrics, LearnerMetrics
from monitoring.register import Described

# Of vLLM's own metrics those that rules and dashboards may name; a test asks a real engine for them.
VLLM: Sequence[Described] = (
    Described("vllm:num_requests_running", "gauge", ("engine", "model_name"), "Completions in the running batch."),
    Described("vllm:num_requests_waiting", "gauge", ("engine", "model_name"), "Completions in the queue."),
    Described("vllm:kv_cache_usage_perc", "gauge", ("engine", "model_name"), "Key-value cache in use, as a fraction."),
    Described(
        "vllm:num_preemptions_total", "counter", ("engine", "model_name"), "Completions put back into the queue."
    ),
    Described("vllm:prompt_tokens_total", "counter", ("engine", "model_name"), "Prompt tokens computed."),
    Described("vllm:generation_tokens_total", "counter", ("engine", "model_name"), "Tokens sampled."),
    Described(
        "vllm:prefix_cache_queries_total", "counter", ("engine", "model_name"), "Tokens asked of the prefix cache."
    ),
    Described("vllm:prefix_cache_hits_total", "counter", ("engine", "model_name"), "Tokens found in the prefix cache."),
)


def catalogue() -> list[Described]:
    """Ours, role by role."""
    roles = (GeneratorMetrics(), LearnerMetrics(), ExporterMetrics())
    return [described for role in roles for described in role.described]


def main() -> None:
    """Entry point: a table."""
    for one in [*catalogue(), *VLLM]:
        labels = f"{{{', '.join(one.labels)}}}" if one.labels else ""
        print(f"{one.name}{labels}  ({one.kind})  {one.help}")


if __name__ == "__main__":
    main()
