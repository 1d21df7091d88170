"""A run whose policy versions are adapters: a few kilobytes each, and the generator samples from what was trained."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from safetensors.torch import load_file

from broker import adapter
from tests.system.pipeline import Pipeline, wait_until

FLAGS = ["--run.steps", "6", "--learner.checkpoint_every", "2", "--learner.learning_rate", "1e-2"]
LORA = ["--learner.lora_rank", "4", "--learner.lora_publish", "adapter"]
KL = ["--objective.kl", "k2", "--objective.kl_coefficient", "0.01"]


def test_adapters_alone_are_published_and_a_killed_learner_goes_on_with_them(tmp_path: Path, taught: Path) -> None:
    with Pipeline(tmp_path, [*FLAGS, *LORA, *KL, "--run.model", str(taught)]) as run:
        run.generator()
        run.learner()
        wait_until(lambda: run.step() >= 3, "three steps are taken")
        run.processes["learner"].send_signal(signal.SIGKILL)
        run.wait_for("learner")
        run.learner()
        assert run.wait_for("learner") == 0, run.log("learner")
        assert run.wait_for("generator") == 0, run.log("generator")
        assert run.ledger().balance().balanced
    newest = max((path for path in (run.run_folder / "policy").iterdir() if path.name.startswith("v")), key=str)
    assert {path.name for path in newest.glob("*.safetensors")} == {adapter.WEIGHTS}
    final = run.run_folder / "model"
    assert adapter.Adapter.read(final / "adapter").base == adapter.digest(taught)
    assert load_file(final / "model.safetensors").keys() == load_file(taught / "model.safetensors").keys()
    lines = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    fresh = [line["mismatch_engine"] for line in steps if line["mismatch_engine"] is not None]
    assert fresh, "some tokens were sampled by the version that was trained"
    assert max(fresh) < 1e-8, "the generator samples from the very policy that the learner has"
    assert max(line["kl"] for line in steps) > 1e-8, "and it has moved meanwhile"
    assert steps[-1]["kl_reference"] > 0
