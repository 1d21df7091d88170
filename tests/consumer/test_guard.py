"""A run that is lost is stopped, with its last good checkpoint kept; one that merely stumbles is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from broker.errors import Refused
from broker.keys import Keys
from consumer import checkpoint
from consumer.guard import CollapseGuard
from consumer.learner import Learner
from consumer.settings import LearnerSettings
from tests.consumer.one_run import Run


@dataclass(frozen=True)
class Step:
    """What a step says of itself."""

    ess: float = 0.9
    grad_norm: float = 1.0


GOOD, THIN, STEEP, POISONED = Step(), Step(ess=0.001), Step(grad_norm=1e6), Step(grad_norm=math.nan)


def shown(*steps: Step, **settings: Any) -> CollapseGuard:
    guard = CollapseGuard(LearnerSettings.model_validate({"guard_steps": 3, **settings}))
    for step in steps:
        guard.look(step)
    return guard


# -- the guard itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (THIN, "the effective sample size was below 0.01 for 3 steps in a row (now 0.001)"),
        (Step(ess=math.nan), "the effective sample size was below 0.01 for 3 steps in a row (now nan)"),
        (STEEP, "the gradient norm was above 1000 or not finite for 3 steps in a row (now 1e+06)"),
        (POISONED, "the gradient norm was above 1000 or not finite for 3 steps in a row (now nan)"),
        (Step(grad_norm=math.inf), "the gradient norm was above 1000 or not finite for 3 steps in a row (now inf)"),
    ],
)
def test_three_in_a_row_end_the_run_and_two_do_not(bad: Step, says: str) -> None:
    assert shown(bad, bad, bad).verdict == says
    assert shown(bad, bad).verdict == ""
    assert shown(bad, bad).uneasy == 2


def test_a_good_step_begins_the_count_anew() -> None:
    guard = shown(STEEP, STEEP, GOOD, STEEP, STEEP)
    assert (guard.verdict, guard.uneasy) == ("", 2)
    assert shown(STEEP, STEEP, GOOD).uneasy == 0


def test_steps_that_are_bad_in_different_ways_are_bad_all_the_same() -> None:
    """Else a run that alternates would have neither a verdict nor, since no checkpoint is made meanwhile, a bound."""
    verdict = shown(THIN, STEEP, THIN).verdict
    assert "the effective sample size was below 0.01 or the gradient norm was above 1000" in verdict
    assert "for 3 steps in a row" in verdict


def test_it_can_be_turned_off() -> None:
    guard = shown(*[POISONED] * 100, guard_steps=0)
    assert (guard.verdict, guard.uneasy) == ("", 0)


def test_the_default_ranges_are_far_from_where_healthy_runs_are() -> None:
    """Of the demo and of tiny models: ess 0.88 to 1.0, gradient norm 1.3 to 4.2. One token in a hundred, a norm of 1000
    are no such thing; and the limits themselves are within."""
    healthy = [Step(0.879, 4.13), Step(0.9992, 2.59), Step(0.01, 1000.0)]
    assert shown(*healthy * 10, guard_steps=1).uneasy == 0


# -- a learner that it watches ----------------------------------------------------------------------------------------


@pytest.fixture
def run(redis: redis.Redis, blocking: redis.Redis, keys: Keys, tmp_path: Path) -> Run:
    made = Run(redis, blocking, keys, tmp_path)
    made.learner_settings = {"checkpoint_every": 2, "keep_checkpoints": 1, "guard_steps": 5}
    made.run_settings = {"steps": 12}
    return made


def ill(learner: Learner, when: Callable[[int], bool]) -> Learner:
    """The gradient of step n (from 1) explodes when `when(n)`."""

    def fever(gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, 1e9) if when(learner.at.step + 1) else gradient

    learner.trainer.model.parameters[0].register_hook(fever)
    return learner


def folders(run: Run) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run.folder / run.keys.run / "checkpoints").iterdir())


def figure(learner: Learner, name: str) -> float | None:
    return learner.metrics.registry.get_sample_value(f"headrace_learner_{name}")


def test_a_collapsed_run_stops_with_its_last_good_checkpoint_which_no_other_has_pushed_out(run: Run) -> None:
    """Five bad steps are more than two checkpoints' worth: without the guard's care, step 6 would have its own."""
    learner = ill(run.learner(), lambda step: step >= 4)
    with pytest.raises(Refused) as caught:
        run.finish(learner)
    assert caught.value.cause.startswith(
        "the run has collapsed by step 8: the gradient norm was above 1000 or not finite for 5 steps in a row (now "
    )
    assert f"that of step 2, in {run.folder / run.keys.run / 'checkpoints'};" in caught.value.remedy
    assert folders(run) == [2]
    found = checkpoint.newest(run.folder / run.keys.run / "checkpoints")
    assert found is not None
    assert found.state()
    assert figure(learner, "out_of_range_steps") == 5
    assert [line["step"] for line in run.lines("step")] == list(range(1, 9)), "all of it can be read"
    balance = learner.dispatch.ledger.balance()
    assert balance.balanced
    assert len(balance.unsettled) <= learner.recipe.capacity + 2 * (2 * 2 + 5)


def test_the_same_command_stops_at_once_and_a_mended_one_goes_on_from_the_good_checkpoint(run: Run) -> None:
    with pytest.raises(Refused):
        run.finish(ill(run.learner(), lambda step: step >= 4))
    with pytest.raises(Refused, match=r"by step 8: .* that of step 2, in "):
        run.finish(ill(run.learner(), lambda step: step >= 4))
    assert folders(run) == [2]
    mended = run.learner()
    assert run.finish(mended) == "finished"
    assert mended.at.step == 12
    balance = mended.dispatch.ledger.balance()
    assert balance.verdicts["trained"] == 12 * 2, "no group was lost, and none was trained on twice"
    assert balance.balanced
    assert not balance.unsettled
    assert folders(run) == [12]


def test_a_run_that_stumbles_again_and_again_finishes_and_has_its_checkpoints(run: Run) -> None:
    learner = ill(run.learner(), lambda step: step % 5 != 0)
    assert run.finish(learner) == "finished"
    assert learner.dispatch.ledger.count("trained") == 12 * 2
    assert figure(learner, "out_of_range_steps") == 2


def test_updates_that_are_thrown_away_one_after_the_other_end_a_run_as_well(run: Run) -> None:
    learner = run.learner()
    learner.trainer.model.parameters[0].register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(Refused, match=r"by step 5: .* not finite for 5 steps in a row \(now nan\).* that of step 0"):
        run.finish(learner)
    assert folders(run) == [0]


def test_the_last_step_of_a_run_is_looked_at_as_well(run: Run) -> None:
    run.run_settings = {"steps": 5}
    with pytest.raises(Refused, match="by step 5"):
        run.finish(ill(run.learner(), lambda step: True))
