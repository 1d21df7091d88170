"""I3: with `max_staleness = 0` the pipeline *is* synchronous on-policy training, to the bit.

On one side real processes: Redis, a learner, a generator. On the other `synchronous`, a plain loop that knows the
mathematics and nothing of streams, buffers, packing or publishing. Both begin with a tiny model that was taught to
answer a sum with some number between 0 and 18, so that rewards differ within a group often enough to learn from.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from broker.joining import Fingerprint, announce
from broker.loading import load
from consumer.choice import problem_of
from consumer.tickets import seed_of
from producer.settings import GeneratorRecipe
from producer.tasks import Task
from producer.tasks.named import resolve
from producer.tasks.registry import make_task
from producer.tokens import Tokens
from producer.transformers_engine import TransformersEngine
from tests.system.pipeline import ROOT, Pipeline, wait_until

# With this seed so few of the first groups are degenerate that the third batch is two versions old at a depth of two.
STEPS, GROUPS, GROUP_SIZE, RATE, SEED, VERSIONS = 5, 2, 8, 3e-3, 8, 9
Weights = dict[str, Tensor]


def flags(model: Path, *more: str) -> list[str]:
    """`tiny.toml` made deterministic; every version is kept to be looked at."""
    text = f"""--run.model {model} --run.steps {STEPS} --run.seed {SEED} --run.deterministic true
        --learner.order strict --learner.groups_per_step {GROUPS} --learner.learning_rate {RATE}
        --learner.threads 1 --generator.threads 1 --sampling.group_size {GROUP_SIZE} --policy.keep {VERSIONS}"""
    return [*text.split(), *more]


# One completion a forward pass, so that the plain loop needs no padding. That this makes no difference is I7.
SYNCHRONOUS = ["--run.max_staleness", "0", "--learner.pipeline_depth", "0", "--learner.tokens_per_micro_batch", "1"]


def resolved(model: Path, *more: str) -> GeneratorRecipe:
    return load(GeneratorRecipe, ROOT / "recipes/tiny.toml", flags(model, *more), {})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the plain loop --------------------------------------------------------------------------------------------------


def scored(engine: TransformersEngine, tokens: Tokens, task: Task, ticket: int) -> tuple[Any, Any, list[float]]:
    """Prompt, completions and rewards of the problem whose turn it is."""
    problem = task.train[problem_of(SEED, ticket, len(task.train))]
    prompt = tokens.prompt_ids(problem)
    answers = asyncio.run(engine.sample(prompt, seed_of(SEED, ticket), "any"))
    score = resolve(task.parts[0].scoring.verifier)
    return prompt, answers, [score(tokens.decode(a.tokens), problem).reward for a in answers]


def synchronous(folder: Path, scratch: Path) -> list[Weights]:
    """Sample with the newest weights, score, step: the weights of every version. Groups of equals are skipped."""
    of, tickets = resolved(folder, *SYNCHRONOUS), itertools.count()
    engine, tokens, task = TransformersEngine(str(folder), of), Tokens(folder, of.task), make_task(of.task)
    asyncio.run(engine.start())
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()
    weights = list(model.parameters())
    adam = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    versions = [copied(model)]
    for version in range(STEPS):
        save_file(versions[-1], scratch / "model.safetensors")
        asyncio.run(engine.refresh(scratch, version))
        batch: list[tuple[Any, Any, float]] = []
        while len(batch) < GROUPS * GROUP_SIZE:
            prompt, answers, rewards = scored(engine, tokens, task, next(tickets))
            if len(set(rewards)) > 1:
                others = [(sum(rewards) - r) / (GROUP_SIZE - 1) for r in rewards]
                batch += [(prompt, a, r - o) for a, r, o in zip(answers, rewards, others, strict=True)]
        total = sum(len(answer.tokens) for _, answer, _ in batch)
        for prompt, answer, advantage in sorted(batch, key=lambda row: -len(row[0]) - len(row[1].tokens)):
            ids = torch.tensor([*prompt, *answer.tokens])
            hidden = model.model(input_ids=ids[None]).last_hidden_state[0, len(prompt) - 1 : -1]
            logits = model.lm_head(hidden)
            logprobs = logits.gather(1, ids[len(prompt) :, None])[:, 0] - torch.logsumexp(logits, -1)
            ratio = torch.exp(logprobs - logprobs.detach())
            weight = torch.exp(logprobs.detach() - torch.tensor(answer.logprobs)).clamp(max=2.0)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - 0.2, 1 + 0.28) * advantage)
            (-(weight * gain).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        adam.zero_grad()
        versions.append(copied(model))
    asyncio.run(engine.stop())
    return versions


def copied(model: Any) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    return synchronous(taught, tmp_path_factory.mktemp("plain"))


# -- the pipeline ----------------------------------------------------------------------------------------------------


def finish(run: Pipeline, *generators: str) -> list[Weights]:
    """Wait for the end; the weights of every version that was published. The final model is the last of them."""
    for name in ("learner", *generators):
        assert run.wait_for(name) == 0, run.log(name)[-3000:]
    balance = run.ledger().balance()
    assert balance.balanced
    assert balance.verdicts["trained"] == STEPS * GROUPS
    assert balance.verdicts["degenerate"] > 0, "some groups could not be learnt from, and were replaced"
    versions = [load_file(folder / "model.safetensors") for folder in sorted(run.run_folder.glob("policy/v*"))]
    assert len(versions) == STEPS + 1
    assert equal(versions[-1], load_file(run.run_folder / "model" / "model.safetensors"))
    assert all(not equal(a, b) for a, b in itertools.pairwise(versions)), "every step has changed the weights"
    return versions


def lines(run: Pipeline, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.run_folder / "steps.jsonl").read_text().splitlines()]
    return [record for record in records if kind in record]


@pytest.mark.parametrize("evaluations", [0, 4], ids=["alone", "with evaluations between"])
def test_at_bound_zero_every_version_is_that_of_a_plain_loop_to_the_bit(
    taught: Path, plain: list[Weights], tmp_path: Path, evaluations: int
) -> None:
    evals = ["--learner.eval_problems", str(evaluations), "--learner.eval_every", "1"]
    with Pipeline(tmp_path / "runs", flags(taught, *SYNCHRONOUS, *evals)) as run:
        run.learner()
        run.generator()
        versions = finish(run, "generator")
    for number, (asynchronous, synchronous) in enumerate(zip(versions, plain, strict=True)):
        assert equal(asynchronous, synchronous), f"version {number} differs"
    assert {line["staleness_max"] for line in lines(run, "step")} == {0}
    assert len(lines(run, "eval")) == (STEPS + 1 if evaluations else 0)


def two_generators(taught: Path, folder: Path, slots: int) -> tuple[list[Weights], list[dict[str, Any]]]:
    """An asynchronous run in strict order; both generators stand ready before the first ticket is issued.

    Evaluations of newer versions come between older train tickets: a generator must go back for those.
    """
    more = ["--run.max_staleness", "2", "--learner.pipeline_depth", "2", "--generator.slots", str(slots)]
    more += ["--learner.eval_every", "1"]
    with Pipeline(folder / "runs", flags(taught, *more)) as run:
        announce(run.client, run.keys, Fingerprint.of(resolved(taught, *more)), "{}")
        run.generator("first")
        run.generator("second")
        wait_until(lambda: run.client.hlen(run.keys.generators) == 2, "both generators are up")
        run.learner()
        versions = finish(run, "first", "second")
    assert all("refreshed" in run.log(name) for name in ("first", "second")), "both have sampled"
    return versions, lines(run, "step")


def test_two_generators_that_race_each_other_give_the_same_weights_every_time(taught: Path, tmp_path: Path) -> None:
    """Strict order, depth 2: who samples what, and when it arrives, is chance; what is trained on is not."""
    versions, steps = two_generators(taught, tmp_path / "one", slots=1)
    again, steps_again = two_generators(taught, tmp_path / "two", slots=3)
    assert all(equal(a, b) for a, b in zip(versions, again, strict=True))
    ages = [line["staleness_histogram"] for line in steps]
    assert ages == [line["staleness_histogram"] for line in steps_again], "each ticket at just the version it names"
    assert max(line["staleness_max"] for line in steps) == 2, "and it was asynchronous"
