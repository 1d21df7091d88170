"""How an answer is to be declared: what a prompt says about it, and the scoring that reads it.

Invariant: one sentence for each format that a verifier reads (`producer/verifiers/answer.py`), and no answer in it.
Refuses to know tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

from producer.tasks.base import Scoring

INSTRUCTIONS = {
    "boxed": "Reason step by step. Then put the final answer into \\boxed{}.",
    "tags": "Reason step by step. Then write the final answer, and nothing else, between <answer> and </answer>.",
    "hashes": "Reason step by step. Then write the final answer, a number alone, on the last line after ####.",
    "last_number": "Reason step by step. Then end with the final answer, a number alone.",
}


def asked(question: str, formats: Sequence[str]) -> str:
    """The question, and how its answer is to be declared: in the first of these formats."""
    return f"{question.strip()}\n\n{INSTRUCTIONS[formats[0]]}"


def scored_by(verifier: str, formats: Sequence[str]) -> Scoring:
    """By one of the verifiers in `producer/verifiers/`, which reads these formats."""
    return Scoring(f"producer.verifiers.{verifier}:score", {"answer": list(formats)}, ("correct", "formatted"))
