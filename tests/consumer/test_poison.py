"""What is not a number costs its group or its step, is counted, and the run goes on.

The generator's side of it: tests/producer/test_poison.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from msgspec.structs import replace

from broker.keys import Keys
from broker.schema import RolloutGroup, Ticket, tombstone
from consumer.learner import Learner
from tests.consumer.desk import ids
from tests.consumer.one_run import Run, mixed

BAD_STEP = 2
VICTIM = ids(1)[0]


@pytest.fixture
def run(redis: redis.Redis, blocking: redis.Redis, keys: Keys, tmp_path: Path) -> Run:
    made = Run(redis, blocking, keys, tmp_path)
    made.run_settings = {"steps": 4}
    return made


def figure(learner: Learner, name: str, **labels: str) -> float | None:
    return learner.metrics.registry.get_sample_value(f"headrace_learner_{name}", labels)


def test_a_loss_that_is_not_a_number_costs_its_update_and_nothing_else(run: Run) -> None:
    learner = run.learner()

    def fever(_: torch.nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits * math.nan if learner.at.step == BAD_STEP - 1 else logits

    learner.trainer.model.module.lm_head.register_forward_hook(fever)
    assert run.finish(learner) == "finished"
    lines = {line["step"]: line for line in run.lines("step")}
    assert [step for step, line in lines.items() if line["skipped"]] == [BAD_STEP]
    assert math.isnan(lines[BAD_STEP]["loss"])
    assert all(math.isfinite(line["loss"]) for step, line in lines.items() if step != BAD_STEP)
    assert figure(learner, "skipped_updates_total") == 1
    assert learner.trainer.updates == 3
    assert all(bool(weight.isfinite().all()) for weight in learner.trainer.snapshot().values())
    assert learner.dispatch.ledger.balance().verdicts["trained"] == 4 * 2


@pytest.mark.parametrize("what", ["reward", "log-prob"])
def test_a_group_with_what_is_not_a_number_in_it_is_refused_counted_and_set_aside(run: Run, what: str) -> None:
    """No generator of ours publishes one; the schema's word is enough for the learner."""
    learner = run.learner()

    def poisoned(ticket: Ticket) -> RolloutGroup:
        made = mixed(ticket)
        if ticket.ticket_id != VICTIM:
            return made
        first, *rest = made.rollouts
        bad = {"reward": {"reward": math.nan}, "log-prob": {"behaviour_logprobs": first.tokens * np.float32(np.nan)}}
        return replace(made, rollouts=(replace(first, **bad[what]), *rest))  # type: ignore[arg-type]

    assert run.finish(learner, poisoned) == "finished"
    unfit = "rollout 0, reward: out of range, or not finite"
    reason = {"reward": unfit, "log-prob": "behaviour_logprobs are not finite"}[what]
    assert run.desk.dead_letters() == [(VICTIM, reason)]
    assert sum(line["groups"]["failed"] for line in run.lines("step")) == 1
    assert figure(learner, "groups_total", verdict="failed") == 1
    assert learner.dispatch.ledger.balance().balanced


def test_a_group_that_its_generator_could_not_answer_leaves_a_line_with_its_reason(run: Run) -> None:
    learner = run.learner()

    def unfit(ticket: Ticket) -> RolloutGroup:
        return tombstone(ticket, "the engine has a fever") if ticket.ticket_id == VICTIM else mixed(ticket)

    assert run.finish(learner, unfit) == "finished"
    assert run.desk.dead_letters() == [(VICTIM, "the engine has a fever")]
    assert sum(line["groups"]["failed"] for line in run.lines("step")) == 1
    assert figure(learner, "groups_total", verdict="failed") == 1
    assert learner.dispatch.ledger.balance().verdicts["failed"] == 1


def test_rewards_too_large_to_be_compared_cost_the_step_they_are_in_and_no_more(run: Run) -> None:
    """Each is a number of float32, their differences are none."""
    learner, huge = run.learner(), float(np.finfo(np.float32).max)

    def rich(ticket: Ticket) -> RolloutGroup:
        made = mixed(ticket)
        if ticket.ticket_id != VICTIM:
            return made
        rewards = (huge, -huge)
        return replace(made, rollouts=tuple(replace(r, reward=x) for r, x in zip(made.rollouts, rewards, strict=True)))

    assert run.finish(learner, rich) == "finished"
    assert [line["skipped"] for line in run.lines("step")] == [True, False, False, False]
    assert all(bool(weight.isfinite().all()) for weight in learner.trainer.snapshot().values())
