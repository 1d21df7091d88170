r"""The same thing in mathematics: numbers, formulas, tuples, sets, intervals, matrices, equations, words.

Invariant: an answer is right if it is the gold answer written in another way, exactly: a rounded value is another
value, order counts where brackets say so, and a bracket of an interval is part of it. Refuses to know where the answer
stood.

What is taken for the same: `x = 5` and `5`, if every step of a chain of `=` says so; a number with the unit that the
other side leaves out, with and without a percent sign (of values above 1), and `50\%` and 0.5; a closed form and its
value (`2^{10}`, `\sqrt{8}`); lists without brackets in any order; an interval and the inequality that describes it,
unless the answer that is wanted looks like a point, as (1, 2) does. What is not: a number and the same with another
unit or with a remark; bounds of x and bounds of y; what `or` joins and what `and` joins; a ratio and a time of day; AB
and ab.
"""

from __future__ import annotations

from collections.abc import Sequence

from producer.tasks.base import Problem, Verdict
from producer.verifiers.answer import judged
from producer.verifiers.latex import plain, squeezed
from producer.verifiers.sameness import same
from producer.verifiers.solutions import same_numbers
from producer.verifiers.things import Thing, thing


def score(completion: str, problem: Problem, *, answer: Sequence[str] = ("boxed",)) -> Verdict:
    """1.0 if the declared answer is the gold one. Raises `ValueError` for a gold that cannot be read."""
    return judged(
        completion,
        problem,
        answer,
        kind="answer that can be read",
        read=read,
        right=equal,
        same=lambda one, other: equal(one, other) or equal(other, one),
        shown=lambda value: squeezed(value[0]),
    )


Read = tuple[str, Thing]


def read(text: str) -> Read | None:
    """What an answer says, plainly, and what it is."""
    said = plain(text)
    return (said, thing(said)) if squeezed(said) else None


def equal(gold: Read, value: Read) -> bool:
    """`value` is the gold answer."""
    return squeezed(gold[0]) == squeezed(value[0]) or same(gold[1], value[1]) or same_numbers(gold[1], value[1])
