"""How the processes of a run share the cores of one machine.

Invariant: whatever somebody has set himself stays as it is. Refuses to know which processes there are.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of an OpenMP thread that waits for others, before it sleeps: learner and engines share the cores, and one that spins
# for milliseconds, as is usual, keeps the very thread that it waits for from running.
SPINS = "2000"


def sharing(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that has others beside it. It is read when torch is imported."""
    return {"GOMP_SPINCOUNT": SPINS, **environment}
