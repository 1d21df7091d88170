"""Which rank computes which micro-batch.

Invariant: each micro-batch is computed once, by one rank; every rank finds the same answer by itself. Refuses to know
what a micro-batch holds.
"""

from __future__ import annotations

from collections.abc import Sequence


def assign(costs: Sequence[float], world: int) -> list[list[int]]:
    """Indices of micro-batches for each of `world` ranks, balanced by cost: the dearest first, to whom has least to do.

    Graham's rule (1969): the busiest rank has at most 4/3 of what the best assignment would give it.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(world), key=lambda r: (loads[r], len(shares[r]), r))
        shares[rank].append(index)
        loads[rank] += costs[index]
    return [sorted(share) for share in shares]
