"""`gsm8k-qwen.toml`, the recipe for a GPU, taken through five steps on a CPU: its task, its verifier, its publishing.

The model has Qwen's shape and random weights. Such a one never writes `#### 7`, so every group of its answers would be
alike and no step ever taken. It is therefore taught beforehand to answer with `####` and any digit, and only that: then
groups are mixed by chance. That the run goes its way is shown here, and not that anything is learnt.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.decoding import decode_group
from broker.fingerprint import tokenizer_hash
from broker.policy import PolicyStore
from broker.schema import RolloutGroup
from deploy.prepare import prepare
from producer.tasks.registry import make_task
from producer.tasks.settings import Gsm8kSettings
from producer.tokens import Tokens
from tests.system.pipeline import ROOT, Pipeline, wait_until
from tests.system.teaching import teach

STEPS, GROUP, GROUPS_PER_STEP = 5, 8, 4
LESSONS, ROWS = 200, 8
START_SECONDS = 400.0  # vLLM takes half a minute, on a busy machine minutes
LONGEST_QUESTION = 220  # characters; every one is a token here
ON_A_CPU = {
    "run.steps": STEPS,
    "policy.keep": STEPS + 1,  # so that all are there to be looked at
    "task.held_out": 4,
    "sampling.max_tokens": 12,
    "generator.slots": 4,
    "generator.device": "cpu",
    "generator.threads": 1,
    "generator.kv_cache_gib": 0.25,
    "generator.enforce_eager": "true",
    "learner.groups_per_step": GROUPS_PER_STEP,
    "learner.device": "cpu",
    "learner.threads": 1,
    "learner.eval_problems": 4,
    "learner.eval_every": 0,
    "monitoring.learner_port": 0,
    "monitoring.generator_port": 0,
    "monitoring.exporter_port": 0,
}


def written(split: str) -> list[dict[str, str]]:
    """Problems in GSM8K's format, each with a digit for an answer."""
    offset, names = (0, ("Ann", "Ben", "Cleo", "Dan")) if split == "train" else (1, ("Eve", "Finn"))
    problems = []
    for name in names:
        for first in range(5):
            second = (first + offset) % 5
            question = f"{name} has {first} apples and buys {second} more. How many apples does {name} have now?"
            total = first + second
            answer = f"{name} has {first}+{second}=<<{first}+{second}={total}>>{total} apples.\n#### {total}"
            problems.append({"question": question, "answer": answer})
    return problems


def short(split: str, folder: Path) -> list[dict[str, str]]:
    """Those of the real ones that have a digit for an answer, and are short."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    rows: list[dict[str, str]] = [json.loads(line) for line in lines if line.strip()]
    golds = {f"#### {digit}" for digit in range(10)}
    fit = [row for row in rows if row["answer"].splitlines()[-1].strip() in golds]
    return [row for row in fit if len(row["question"]) <= LONGEST_QUESTION][:40]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task's directory: of GSM8K itself where GSM8K_DIR says where it is."""
    folder, real = tmp_path_factory.mktemp("gsm8k"), os.environ.get("GSM8K_DIR")
    for split in ("train", "test"):
        rows = short(split, Path(real)) if real else written(split)
        assert len(rows) >= 10
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A model directory: random weights of Qwen's shape that have learnt to answer `#### ` and a random digit."""
    untaught = prepare("random:qwen-tiny", tmp_path_factory.mktemp("models"))
    settings = Gsm8kSettings(name="gsm8k", path=data, held_out=4)
    tokens, tokenizer = Tokens(untaught, settings), AutoTokenizer.from_pretrained(untaught)
    chance = np.random.default_rng(0)
    prompts = [tokens.prompt_ids(problem) for problem in make_task(settings).train]
    answers = np.array([[*tokenizer(f"#### {digit}")["input_ids"], *tokens.stop_ids] for digit in range(10)])

    def lesson() -> tuple[torch.Tensor, int]:
        """An answer at random behind the last tokens of prompts; of how many must not matter to it."""
        length = int(np.exp(chance.uniform(np.log(8), np.log(min(map(len, prompts))))))
        ends = [prompts[which][-length:] for which in chance.integers(len(prompts), size=ROWS)]
        chosen = answers[chance.integers(10, size=ROWS)]
        return torch.tensor(np.concatenate([np.stack(ends), chosen], axis=1)), answers.shape[1]

    return teach(untaught, tmp_path_factory.mktemp("taught"), (lesson() for _ in range(LESSONS)))


def flags(model: Path, data: Path, engine: str) -> list[str]:
    values = {**ON_A_CPU, "run.model": model, "task.path": data, "generator.engine": engine}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.engine)])
def test_the_recipe_takes_five_steps_on_a_cpu(tmp_path: Path, taught: Path, data: Path, engine: str) -> None:
    recipe = str(ROOT / "recipes" / "gsm8k-qwen.toml")
    with Pipeline(tmp_path / "runs", flags(taught, data, engine), recipe=recipe, name="gsm8k-qwen") as run:
        run.learner()
        run.generator()
        wait_until(lambda: run.step() >= 1 or any_ended(run), "a step is done", START_SECONDS)
        groups = [group for group in published(run) if group.kind == "train"]
        assert run.wait_for("learner") == 0, run.log("learner")
        assert run.wait_for("generator") == 0, run.log("generator")
        the_verifier_spoke(groups)
        every_step_was_taken(run.run_folder)
        every_version_was_published(run)
        balance = run.ledger().balance()
        assert balance.balanced
        assert not balance.unsettled
        assert balance.verdicts["trained"] == STEPS * GROUPS_PER_STEP
        assert balance.verdicts.get("failed", 0) == balance.verdicts.get("stale", 0) == 0
    the_model_can_be_used(run.run_folder / "model", taught)


def any_ended(run: Pipeline) -> bool:
    return any(process.poll() is not None for process in run.processes.values())


def published(run: Pipeline) -> list[RolloutGroup]:
    """What is in the rollout stream now: all that was trained on, since no checkpoint has been made yet."""
    entries: Any = run.client.xrange(run.keys.rollouts("train"))
    return [decode_group(fields[b"payload"]) for _, fields in entries]


def the_verifier_spoke(groups: list[RolloutGroup]) -> None:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert len(groups) >= GROUPS_PER_STEP
    assert all(len(group.rollouts) == GROUP for group in groups)
    assert all(rollout.components.keys() == {"correct", "formatted"} for rollout in rollouts)
    assert any(rollout.components["formatted"] for rollout in rollouts)
    assert 0 < sum(rollout.components["correct"] for rollout in rollouts) < len(rollouts)
    assert all(rollout.reward == rollout.components["correct"] for rollout in rollouts)


def every_step_was_taken(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    steps = [record for record in records if "step" in record]
    assert [step["step"] for step in steps] == [step["policy_version"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        assert math.isfinite(step["loss"])
        assert 0 < step["grad_norm"] < math.inf
        assert not step["skipped"]
        assert 0 < step["tokens"] <= step["padded_tokens"]
        assert 0 < step["reward"] < 1
        assert step["staleness_max"] <= 8
    evaluations = {record["eval"]["label"]: record["eval"] for record in records if "eval" in record}
    assert evaluations.keys() == {"start", "end"}
    assert all(one["samples"] == 4 * GROUP and one["failed"] == 0 for one in evaluations.values())


def every_version_was_published(run: Pipeline) -> None:
    store = PolicyStore(run.client, run.keys, run.run_folder / "policy", keep=STEPS + 1, lease_seconds=60.0)
    assert store.versions() == list(range(STEPS + 1))
    assert store.newest() == STEPS
    for version in store.versions():
        assert json.loads((store.open(version) / "config.json").read_text())["dtype"] == "bfloat16"
    assert f'"version": {STEPS}' in run.log("generator"), "the generator has taken it up"


def the_model_can_be_used(folder: Path, before: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("What is 3 + 4?", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer_hash(folder) == tokenizer_hash(before)
