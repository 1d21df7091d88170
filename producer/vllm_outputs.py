"""What vLLM says of a completion, in our words.

Invariant: one log-prob a token, and spans that cover them; anything else raises. Refuses to know requests and weights.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from broker.schema import VersionSpan
from producer.engine import Completion

SpanSource = Literal["reported", "drained", "conservative"]


def span_source(llm: Any, conservative: bool) -> SpanSource:
    """How version spans are known: reported by vLLM (0.32 and later), else by the recipe's choice between two evils."""
    from vllm.outputs import CompletionOutput

    if hasattr(llm, "update_weight_version") and "weight_versions" in CompletionOutput.__dataclass_fields__:
        return "reported"
    return "conservative" if conservative else "drained"


def completion(output: Any, version: int, reported: bool) -> Completion:
    """vLLM's `CompletionOutput` as ours; without `reported` spans all of it is `version`'s, which it started with."""
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {output.finish_reason}")
    tokens = np.asarray(output.token_ids, np.int32)
    logprobs = np.asarray(output.logprobs.logprobs, np.float32)  # flat and of the sampled tokens alone: one a token
    if len(logprobs) != len(tokens):
        raise RuntimeError(f"vLLM returned {len(logprobs)} log-probs for {len(tokens)} tokens")
    spans: tuple[VersionSpan, ...] = (VersionSpan(version, 0, len(tokens)),)
    if reported:
        spans = tuple(VersionSpan(int(span.version), span.start, span.end) for span in output.weight_versions)
    return Completion(tokens, logprobs, spans, output.finish_reason == "length")
