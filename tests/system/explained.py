"""A task of the tests whose groups come out in every way: mixed, all equal, and not fit for training.

Invariant: what becomes of a problem's group follows from its level alone, whatever a random model says (a mixed one may
by chance be all equal).
"""

from __future__ import annotations

from producer.tasks import Problem, Verdict

LEVELS = ("mixed", "equal", "unfit")
REWARD = '{"correct": 1.0, "big": 1e38}'


class Ways:
    """`gold` says which way. Paid for with `REWARD`: what is unfit is worth more than a float32 can say."""

    components = ("correct", "big")

    def __init__(self) -> None:
        problems = [Problem(f"Say {n} \x1b[31m[bold]<b>{n}", LEVELS[n % 3], level=LEVELS[n % 3]) for n in range(30)]
        self.train, self.held_out = problems, [Problem("Say nothing", "mixed", level="mixed")] * 4

    @staticmethod
    def score(completion: str, problem: Problem) -> Verdict:
        odd = float(sum(completion.encode()) % 2) if problem.gold == "mixed" else 0.25
        return Verdict(odd, {"correct": odd, "big": 100.0 if problem.gold == "unfit" else 0.0})
