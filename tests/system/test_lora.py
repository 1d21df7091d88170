"""A run whose policy versions are adapters: a few kilobytes each, and the generator samples from what was trained."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

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


@pytest.fixture
def other(tmp_path: Path, taught: Path) -> Path:
    """A model of the same shapes as `taught`, and not the same."""
    folder = tmp_path / "other"
    shutil.copytree(taught, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_a_generator_with_another_base_ends_and_says_why(
    tmp_path: Path, taught: Path, other: Path, deterministic: str
) -> None:
    with Pipeline(tmp_path, [*FLAGS, *LORA, "--run.deterministic", deterministic]) as run:
        run.generator("generator", "--run.model", str(other))
        run.learner("--run.model", str(taught))
        assert run.wait_for("generator") == 2, run.log("generator")
        assert "belongs to other weights" in run.log("generator").splitlines()[-1]
        assert run.step() == 0


def test_a_learner_that_comes_back_with_another_base_or_alpha_is_refused(
    tmp_path: Path, taught: Path, other: Path
) -> None:
    with Pipeline(tmp_path, [*FLAGS, *LORA]) as run:
        run.generator("generator", "--run.model", str(taught))
        run.learner("--run.model", str(taught))
        wait_until(lambda: run.step() >= 3, "three steps are taken")
        run.processes["learner"].send_signal(signal.SIGKILL)
        run.wait_for("learner")
        for model, alpha, named in ((other, "32", "run.model"), (taught, "16", "learner.lora_alpha")):
            run.learner("--run.model", str(model), "--learner.lora_alpha", alpha)
            assert run.wait_for("learner") == 2, run.log("learner")
            assert f"trained with another {named}" in run.log("learner").splitlines()[-1]
        run.learner("--run.model", str(taught))
        assert run.wait_for("learner") == 0, run.log("learner")
