"""Which problems have prompts that fit.

Invariant: no problem is left out in silence: either all fit, or the recipe says that others may be left out and the log
says how many were. Refuses to know what a prompt says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from broker.errors import Refused
from producer.tasks import FixedTask, Problem
from producer.tokens import Tokens

log = structlog.get_logger("generator")


def fitting(task: FixedTask, tokens: Tokens, limit: int, drop: bool) -> FixedTask:
    """The task without the problems whose prompts exceed `limit` tokens. Raises `Refused` for them unless `drop`."""
    train, held_out = (_lengths(split, tokens, limit) for split in (task.train, task.held_out))
    over = [length for length in (*train, *held_out) if length > limit]
    if not over:
        return task
    total, cause = len(train) + len(held_out), f"prompts longer than sampling.max_prompt_tokens = {limit}"
    if not drop:
        raise Refused(
            f"{len(over)} of {total} problems have {cause} (the longest has {max(over)})",
            "raise it, or leave them out with task.drop_long_prompts = true",
        )
    kept = replace(task, train=_kept(task.train, train, limit), held_out=_kept(task.held_out, held_out, limit))
    log.warning("problems are left out", problems=len(over), of=total, because=cause)
    if not kept.train:
        raise Refused(f"all problems to train on have {cause}", "raise it")
    return kept


def _lengths(problems: Sequence[Problem], tokens: Tokens, limit: int) -> list[int]:
    """Tokens of each prompt; 0 where there cannot be too many, since no token is less than a byte."""
    around = len(tokens.prompt_ids(Problem("", "")))
    out = []
    for problem in problems:
        most = around * len(problem.messages) + sum(len(text.encode()) for _, text in problem.messages)
        out.append(0 if most <= limit else len(tokens.prompt_ids(problem)))
    return out


def _kept(problems: Sequence[Problem], lengths: Sequence[int], limit: int) -> tuple[Problem, ...]:
    return tuple(p for p, length in zip(problems, lengths, strict=True) if length <= limit)
