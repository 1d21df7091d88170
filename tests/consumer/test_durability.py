"""Checkpoints are written beside the training, and survive a full disk and a crash at any point."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from broker.keys import Keys
from broker.ledger import Entry
from consumer import checkpoint
from consumer.checkpoint import milestones
from tests.consumer.one_run import Run
from tests.system.pipeline import wait_until


@pytest.fixture
def run(redis: redis.Redis, blocking: redis.Redis, keys: Keys, tmp_path: Path) -> Run:
    made = Run(redis, blocking, keys, tmp_path)
    made.learner_settings = {"checkpoint_every": 2}
    made.run_settings = {"steps": 9}
    return made


def weights(run: Run) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(run.folder / run.keys.run / "checkpoints")
    assert found is not None
    return found.state()


def test_the_learner_trains_on_while_a_checkpoint_is_written(run: Run) -> None:
    learner = run.learner()

    def slow(root: Path, step: int, *rest: Any) -> None:
        if step == 2:
            wait_until(lambda: learner.at.step >= 3, "a step was taken meanwhile", 15)
        checkpoint.write(root, step, *rest)

    learner.durability.write = slow
    assert run.finish(learner) == "finished"
    assert learner.dispatch.ledger.balance().balanced
    assert not learner.dispatch.journal


def test_a_step_taken_while_a_checkpoint_waits_for_its_version_is_not_in_it(run: Run) -> None:
    run.learner_settings |= {"publish_every": 2}
    learner = run.learner()
    of, settled = learner.publisher.barrier, dict[int, list[int]]()

    def late() -> Callable[[], object]:
        published, step = of(), learner.at.step

        def wait() -> None:
            published()
            if step == 2:
                wait_until(lambda: learner.dispatch.journal[-1].step > step, "a step was committed meanwhile", 15)

        return wait

    def write(root: Path, step: int, state: Any, document: dict[str, Any], *rest: Any) -> None:
        settled[step] = [Entry.decode(entry).step for entry in document["entries"]]
        checkpoint.write(root, step, state, document, *rest)

    learner.publisher.barrier = late  # type: ignore[method-assign]
    learner.durability.write = write
    assert run.finish(learner) == "finished"
    assert all(steps[-1:] in ([], [step]) for step, steps in settled.items()), settled
    assert list(chain.from_iterable(settled.values())) == list(range(1, 10))


def test_where_the_disk_is_full_the_last_checkpoint_stands_and_the_learner_goes_on_as_far_as_memory_allows(
    run: Run,
) -> None:
    learner = run.learner()
    ledger, capacity, room, waited = learner.dispatch.ledger, learner.recipe.capacity, [False], list[tuple[int, str]]()

    def full(root: Path, step: int, *rest: Any) -> None:
        if step and not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))
        checkpoint.write(root, step, *rest)

    def sleep(_: float) -> None:
        waited.append((learner.at.step, learner.metrics.health()["waiting"]["reason"]))
        learner.publisher.join()
        assert len(ledger.unsettled()) <= capacity + 2 * 2 * 2, "c = 2 * checkpoint_every"
        assert ledger.count("trained") == 0, "nothing is final without a checkpoint"
        room[0] = len(waited) == 3

    learner.durability.write, learner.durability.sleep = full, sleep
    learner.durability.clock = lambda: 0.0  # no time to try again passes before it must wait
    assert run.finish(learner) == "finished"
    assert waited == [(4, "checkpoint")] * 3
    assert learner.metrics.registry.get_sample_value("headrace_learner_checkpoint_failures_total") == 3
    assert ledger.balance().balanced
    assert ledger.count("trained") == 9 * 2


@pytest.mark.parametrize("written", [False, True], ids=["before it is on disk", "before the ledger knows"])
def test_a_crash_in_a_checkpoint_costs_nothing(run: Run, tmp_path: Path, written: bool) -> None:
    steady = Run(run.client, run.blocking, Keys("steady"), tmp_path / "steady", run.learner_settings, run.run_settings)
    steady.finish(steady.learner())

    def crash(root: Path, step: int, *rest: Any) -> None:
        if step < 4:
            checkpoint.write(root, step, *rest)
            return
        if written:
            checkpoint.write(root, step, *rest)
        raise InterruptedError("crash")

    first = run.learner()
    first.durability.write = crash
    with pytest.raises(InterruptedError):
        run.finish(first)
    second = run.learner()
    assert run.finish(second) == "finished"
    assert second.dispatch.ledger.count("trained") == 9 * 2
    mine, theirs = weights(run), weights(steady)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("steps", "every", "kept"),
    [
        ([0, 10, 20, 30, 40], 20, [20, 40]),
        ([0, 7, 14, 21, 28], 10, [14, 21]),
        ([0, 25, 50], 10, [25, 50]),
        ([0, 10, 20], 0, []),
    ],
)
def test_the_first_checkpoint_past_each_multiple_stays(steps: list[int], every: int, kept: list[int]) -> None:
    folders = [Path(f"step-{step:08d}") for step in steps]
    assert milestones(folders, every) == [Path(f"step-{step:08d}") for step in kept]


def test_old_checkpoints_go_and_milestones_stay(tmp_path: Path) -> None:
    for step in range(0, 90, 10):
        checkpoint.write(tmp_path, step, {"w": torch.zeros(1)}, {}, 2, 30)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [30, 60, 70, 80]
