"""A learner of two ranks in a whole run: Redis, a generator, FSDP2 over gloo, a rank that is killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.pipeline import Pipeline, wait_until

FLAGS = ["--run.steps", "6", "--learner.checkpoint_every", "2", "--learner.minibatches_per_batch", "2"]
KL = ["--objective.kl", "k3", "--objective.kl_coefficient", "0.01"]


def start(run: Pipeline) -> None:
    """Both ranks, as torchrun starts them."""
    peers = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in ("0", "1"):
        run.start("consumer", f"rank-{rank}", **peers, RANK=rank, LOCAL_RANK=rank)


@pytest.mark.parametrize("victim", ["rank-0", "rank-1"])
def test_a_run_of_two_ranks_whose_rank_is_killed_goes_on_where_it_was(
    tmp_path: Path, taught: Path, victim: str
) -> None:
    with Pipeline(tmp_path, [*FLAGS, *KL, "--run.model", str(taught)]) as run:
        run.generator()
        start(run)
        wait_until(lambda: run.step() >= 3, "three steps are taken")
        run.processes[victim].send_signal(signal.SIGKILL)
        assert run.wait_for("rank-0") != 0, "one rank does not go on without the other"
        assert run.wait_for("rank-1") != 0
        start(run)
        assert (run.wait_for("rank-0"), run.wait_for("rank-1"), run.wait_for("generator")) == (0, 0, 0)
        assert run.ledger().balance().balanced
        lines = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
        assert [line["outcome"] for line in lines if "outcome" in line] == ["finished"]
        assert {line["step"] for line in lines if "step" in line} == set(range(1, 7))
        newest = max((run.run_folder / "checkpoints").iterdir())
        assert len(list(newest.glob("*.safetensors"))) == 2, "each rank has written its part"
        assert (run.run_folder / "model" / "model.safetensors").exists()
