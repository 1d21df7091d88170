"""A learner of two ranks in a whole run: Redis, a generator, FSDP2 over gloo, a rank that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.ports import free_port
from tests.system.pipeline import ROOT, Pipeline, wait_until

FLAGS = ["--run.steps", "6", "--learner.checkpoint_every", "2", "--learner.minibatches_per_batch", "2"]
KL = ["--objective.kl", "k3", "--objective.kl_coefficient", "0.01"]


def start(run: Pipeline) -> None:
    """Both ranks, as torchrun starts them."""
    peers = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in ("0", "1"):
        run.start("consumer", f"rank-{rank}", **peers, RANK=rank, LOCAL_RANK=rank)


def taken(run: Pipeline, steps: int) -> bool:
    return run.step() >= steps


def test_a_run_of_two_ranks_goes_on_where_it_was_whichever_of_them_is_killed(tmp_path: Path, taught: Path) -> None:
    with Pipeline(tmp_path, [*FLAGS, *KL, "--run.model", str(taught)]) as run:
        run.generator()
        for victim, steps in (("rank-1", 1), ("rank-0", 3)):
            start(run)
            wait_until(partial(taken, run, steps), f"{steps} steps are taken")
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


def test_torchrun_starts_a_learner_on_two_machines_and_two_generators_serve_it(tmp_path: Path, taught: Path) -> None:
    """One recipe for all of them; which machine a learner is on is in the environment alone."""
    flags = [*FLAGS, "--learner.nodes", "2", "--run.model", str(taught), "--policy.backend", "redis"]
    with Pipeline(tmp_path, flags) as run:
        where = ["--run.directory", str(tmp_path), "--broker.url", run.server.url]
        command = [sys.executable, "-m", "deploy.role", "consumer", run.recipe, *flags, *where]
        peers = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        nodes = []
        for number in range(2):
            with (tmp_path / f"node-{number}.log").open("w") as log:
                given = {**peers, "NODE_RANK": str(number)}
                nodes.append(subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=log))
        for name in ("one", "two"):
            run.generator(name)
        try:
            ends = [node.wait(120) for node in nodes]
        finally:
            for node in nodes:
                node.kill()
                node.wait()
        assert ends == [0, 0], "".join(path.read_text()[-3000:] for path in tmp_path.glob("node-*.log"))
        assert (run.wait_for("one"), run.wait_for("two")) == (0, 0)
        assert run.ledger().balance().balanced
        assert run.step() == 6
        newest = max((run.run_folder / "checkpoints").iterdir())
        assert len(list(newest.glob("*.safetensors"))) == 2, "each machine has written its part"
        report = [sys.executable, "-m", "monitoring.report", str(run.run_folder)]
        assert subprocess.run(report, cwd=ROOT, capture_output=True).returncode == 0, "no launcher was needed for it"


def test_ranks_that_would_train_different_things_do_not_begin(tmp_path: Path, taught: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(taught, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "model.safetensors")
    with Pipeline(tmp_path, [*FLAGS, "--run.model", str(taught)]) as run:
        for number, flags in enumerate((["--learner.learning_rate", "0.5"], ["--run.model", str(other)])):
            peers = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            run.start("consumer", "rank-0", **peers, RANK="0", LOCAL_RANK="0")
            run.start("consumer", f"rank-1-{number}", *flags, **peers, RANK="1", LOCAL_RANK="1")
            assert run.wait_for(f"rank-1-{number}") == 2
            said = run.log(f"rank-1-{number}").splitlines()[-1]
            assert said.startswith(f"headrace: {flags[0].removeprefix('--')} differs: here"), said
            run.processes["rank-0"].kill()
            run.wait_for("rank-0")
        assert run.ledger().count("issued") == 0


def test_a_machine_that_was_not_told_its_place_is_told_what_to_set(taught: Path) -> None:
    command = [sys.executable, "-m", "deploy.role", "consumer", "recipes/tiny.toml", "--learner.nodes", "2"]
    given = {**os.environ, "NODE_RANK": "2", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    done = subprocess.run([*command, "--run.model", str(taught)], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 2
    assert "this machine does not know its place among them: set NODE_RANK (0 to 1)" in done.stderr
