"""Several tasks as one, each a part with its share of the tickets.

Invariant: every problem of every part is in the mixture once, in its own split; the first few held-out problems stand
for all parts. Refuses to know what the parts are about, and in which order problems are trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from producer.tasks.base import FixedTask, Part, Problem


def make(tasks: Sequence[tuple[FixedTask, float]]) -> FixedTask:
    """Of tasks of one part each, and their weights. Equal names are told apart by a number."""
    parts, train, held_out, seen = list[Part](), list[Problem](), list[list[Problem]](), Counter[str]()
    for number, (task, weight) in enumerate(tasks):
        seen[task.name] += 1
        name = task.name if seen[task.name] == 1 else f"{task.name} {seen[task.name]}"
        parts.append(replace(task.parts[0], name=name, weight=weight))
        train += [replace(problem, part=number) for problem in task.train]
        held_out.append([replace(problem, part=number) for problem in task.held_out])
    in_turn = chain.from_iterable(zip_longest(*held_out))
    return FixedTask("mixture", tuple(train), tuple(p for p in in_turn if p is not None), tuple(parts))
