"""A verifier that is ill, in a file that its worker process can import in no time."""

from __future__ import annotations

from producer.tasks.base import Problem, Verdict


def not_a_number(completion: str, problem: Problem) -> Verdict:
    """Something went wrong in it, and it did not notice."""
    return Verdict(float("nan"), {"correct": float("nan")})
