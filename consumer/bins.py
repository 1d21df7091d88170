"""Filling bins: items whole, no bin above its capacity, as few bins as a simple rule finds, and those evenly full.

Invariant: a pure function of its arguments; every item is in one bin, once. Refuses to know what an item is.
"""

from __future__ import annotations

from collections.abc import Sequence


def fill(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the items of each bin, in order; an item above the capacity has a bin for itself.

    Longest first into the emptiest, which evens them out, with as few bins as that can do; or first-fit decreasing,
    which may need fewer (at most 11/9 of the optimum and a bin; Johnson 1973).
    """
    first_fit = _first_fit(sizes, capacity)
    for bins in range(max(1, -(-sum(sizes) // capacity)), len(first_fit) + 1):
        even = spread([float(size) for size in sizes], bins)
        if all(len(items) == 1 or sum(sizes[i] for i in items) <= capacity for items in even):
            return even
    return first_fit


def spread(costs: Sequence[float], bins: int, most: int | None = None) -> list[list[int]]:
    """Indices of the items of each of `bins` bins, in order: costliest first, into the bin of least cost (Graham 1969).

    No bin has more than `most` items.
    """
    content: list[list[int]] = [[] for _ in range(bins)]
    load = [0.0] * bins
    for index in _largest_first(costs):
        open_bins = [b for b in range(bins) if most is None or len(content[b]) < most]
        emptiest = min(open_bins, key=lambda b: (load[b], len(content[b]), b))
        content[emptiest].append(index)
        load[emptiest] += costs[index]
    return [sorted(items) for items in content]


def _first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    content: list[list[int]] = []
    room: list[int] = []
    for index in _largest_first(sizes):
        fitting = next((b for b, left in enumerate(room) if left >= sizes[index]), None)
        if fitting is None:
            content.append([index])
            room.append(capacity - sizes[index])
        else:
            content[fitting].append(index)
            room[fitting] -= sizes[index]
    return [sorted(items) for items in content]


def _largest_first(sizes: Sequence[float]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
