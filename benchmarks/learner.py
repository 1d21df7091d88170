"""What packing and lean log-probs are worth: the learner's step against a plain padded one, as ratios of the same run.

Invariant: both sides train the same model on the same sequences with the same loss and optimizer, and count the same
tokens, those of prompts and completions, padding left out. Refuses to know where such groups would come from.

The model is SmolLM2-135M's shape with fewer layers and, in proportion, a smaller vocabulary, so that body and head
share the work as they do in the whole one. A round draws groups of 8 completions and trains on them once each way.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import __version__ as transformers_version

from benchmarks import memory
from broker.schema import Rollout, RolloutGroup, VersionSpan
from consumer.model import PolicyModel
from consumer.objective.advantage import centred
from consumer.optimizer import make_optimizer
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer

HISTOGRAM = Path(__file__).with_name("gsm8k_lengths.json")
GROUPS, GROUP_SIZE, BATCH = 4, 8, 32
LAYERS, VOCABULARY = 30, 49152  # SmolLM2-135M's
LOSS_TOLERANCE = 2e-2  # bfloat16 on a GPU; float32 agrees to about 1e-5
Draw = Callable[[np.random.Generator], tuple[int, list[int]]]  # length of a prompt, and of its completions


class PlainTrainer:
    """As one would write it: rows in arrival order, padded to the longest of 32, logits of everything."""

    def __init__(self, module: Any, recipe: LearnerRecipe, device: torch.device) -> None:
        self.module, self.device = module.to(device).train(), device
        self.weights = list(module.parameters())
        self.optimizer = make_optimizer(self.weights, recipe.learner)

    def train(self, groups: Sequence[RolloutGroup]) -> float:
        """One update; the loss."""
        rows, loss = list(self._rows(groups)), 0.0
        total = sum(len(r.tokens) for _, r, _ in rows)
        for start in range(0, len(rows), BATCH):
            part = self._loss(rows[start : start + BATCH]) / total
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _rows(self, groups: Sequence[RolloutGroup]) -> Iterator[tuple[Any, Rollout, float]]:
        for group in groups:
            gains = centred([r.reward for r in group.rollouts], "leave_one_out")
            yield from ((group.prompt, r, float(a)) for r, a in zip(group.rollouts, gains, strict=True))

    def _loss(self, rows: Sequence[tuple[Any, Rollout, float]]) -> torch.Tensor:
        """Σ −w·min(ρA, clip(ρ)A) over completion tokens, w = min(π/μ, 2)."""
        width = max(len(prompt) + len(r.tokens) for prompt, r, _ in rows)
        ids, seen, counted = (np.zeros((len(rows), width), np.int64) for _ in range(3))
        behaviour, gains = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), 1), np.float32)
        for n, (prompt, rollout, gain) in enumerate(rows):
            end = len(prompt) + len(rollout.tokens)
            ids[n, :end] = np.concatenate([prompt, rollout.tokens])
            seen[n, :end], counted[n, len(prompt) : end], gains[n] = 1, 1, gain
            behaviour[n, len(prompt) : end] = rollout.behaviour_logprobs
        tokens, mask, chosen, mu, advantage = (
            torch.from_numpy(x).to(self.device) for x in (ids, seen, counted[:, 1:], behaviour[:, 1:], gains)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.module(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        logprobs = torch.log_softmax(logits.float(), -1).gather(2, tokens[:, 1:, None])[..., 0]
        ratio = torch.exp(logprobs - logprobs.detach())
        weight = torch.exp(logprobs.detach() - mu).clamp(max=2.0)
        return -(chosen * weight * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)).sum()


def gsm8k() -> Draw:
    """GSM8K's prompts, and for each eight of the answers that prompts of its length have."""
    document = json.loads(HISTOGRAM.read_text())
    cell, counts = document["cell"], np.array(document["counts"])

    def draw(rng: np.random.Generator) -> tuple[int, list[int]]:
        prompt = rng.choice(counts[:, 0], p=counts[:, 2] / counts[:, 2].sum())
        alike = counts[counts[:, 0] == prompt]
        answers = rng.choice(alike[:, 1], GROUP_SIZE, p=alike[:, 2] / alike[:, 2].sum())
        return int(prompt * cell + rng.integers(cell)), (answers * cell + rng.integers(1, cell, GROUP_SIZE)).tolist()

    return draw


def uniform() -> Draw:
    """Prompts of 32 to 256 tokens, answers of 16 to 512, any length as likely."""
    return lambda rng: (int(rng.integers(32, 257)), rng.integers(16, 513, GROUP_SIZE).tolist())


def groups_of(draw: Draw, seed: int, vocabulary: int) -> list[RolloutGroup]:
    """Groups of random tokens with such lengths, sampled by a policy without preferences."""
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(GROUPS):
        prompt, answers = draw(rng)
        rewards = rng.permutation([0.0, 1.0] * (GROUP_SIZE // 2))
        rollouts = tuple(
            Rollout(
                rng.integers(0, vocabulary, length).astype(np.int32),
                np.full(length, -math.log(vocabulary), np.float32),
                (VersionSpan(0, 0, length),),
                float(reward),
                {},
                False,
            )
            for length, reward in zip(answers, rewards, strict=True)
        )
        groups.append(
            RolloutGroup(f"t{number}", "train", 0, rng.integers(0, vocabulary, prompt).astype(np.int32), rollouts)
        )
    return groups


def recipe(layout: str, compiled: bool) -> LearnerRecipe:
    """A learner's as it comes, in one layout."""
    return LearnerRecipe.model_validate(
        {
            "run": {"name": "benchmark", "model": "none", "steps": 1},
            "sampling": {"max_tokens": 512},
            "learner": {"layout": layout, "compile": compiled},
        }
    )


def model(layers: int) -> Any:
    """SmolLM2-135M's shape with so many layers and that share of its vocabulary, the same weights every time."""
    torch.manual_seed(0)
    config: Any = LlamaConfig(
        vocab_size=VOCABULARY * layers // LAYERS, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


Step = Callable[[Sequence[RolloutGroup]], float]


def sides(layers: int, compiled: bool) -> dict[str, Step]:
    """What is compared: each makes an update and tells the loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def ours(trainer: Trainer, groups: Sequence[RolloutGroup]) -> float:
        return trainer.train(groups, policy_version=0).loss

    found: dict[str, Step] = {"padded": PlainTrainer(model(layers), recipe("auto", False), device).train}
    for layout in ("packed", "shared_prompt"):
        of = recipe(layout, compiled)
        found[layout] = partial(ours, Trainer(PolicyModel(model(layers), of.learner, torch.float32, device), of))
    return found


def real_tokens(groups: Sequence[RolloutGroup]) -> tuple[int, int]:
    """Tokens of prompts and completions, each sequence with its prompt; and what the padded loop makes of them."""
    lengths = [len(g.prompt) + len(r.tokens) for g in groups for r in g.rollouts]
    return sum(lengths), sum(max(lengths[i : i + BATCH]) * BATCH for i in range(0, len(lengths), BATCH))


def tokens_a_second(side: Step, groups: Sequence[RolloutGroup]) -> tuple[float, float]:
    """Real tokens a second, on a CPU of this process's own time, which others at work do not lengthen; the loss."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    loss = side(groups)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return real_tokens(groups)[0] / (clock() - started), loss


def compare(draw: Draw, steps: dict[str, Step], rounds: int, vocabulary: int) -> dict[str, list[float]]:
    """Speeds of each side in each round, after one that only warms up. Raises `AssertionError` where losses differ."""
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        groups = groups_of(draw, number, vocabulary)
        order = list(steps) if number % 2 else list(reversed(steps))
        found = {name: tokens_a_second(steps[name], groups) for name in order}
        for name, (speed, loss) in found.items():
            reference = found["padded"][1]
            assert abs(loss - reference) <= LOSS_TOLERANCE * max(abs(reference), 1e-2), f"{name}: {loss}, {reference}"
            if number:
                speeds[name].append(speed)
        print(f"round {number}: " + ", ".join(f"{n} {s:,.0f}/s" for n, (s, _) in found.items()), file=sys.stderr)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS if torch.cuda.is_available() else 1)
    parser.add_argument("--rounds", type=int, default=3, help="of each distribution")
    parser.add_argument("--compile", action="store_true", help="ours with learner.compile")
    parser.add_argument(
        "--threads", type=int, default=1, help="more only where nothing else runs: they wait for each other"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps, vocabulary = sides(args.layers, args.compile), VOCABULARY * args.layers // LAYERS
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    print(
        f"{where}, {platform.machine()}, torch {torch.__version__}, transformers {transformers_version}; {args.layers} "
        f"of {LAYERS} layers, vocabulary {vocabulary:,}; median of {args.rounds} rounds of {GROUPS} groups of "
        f"{GROUP_SIZE}:\n"
    )
    print("| lengths | padding in the padded loop | layout | real tokens/s, of that loop | smallest and largest |")
    print("|---|---|---|---|---|")
    for name, draw in (("GSM8K", gsm8k()), ("uniform", uniform())):
        speeds = compare(draw, steps, args.rounds, vocabulary)
        drawn = [real_tokens(groups_of(draw, number + 1, vocabulary)) for number in range(args.rounds)]
        padding = 1 - sum(real for real, _ in drawn) / sum(padded for _, padded in drawn)
        for layout in ("packed", "shared_prompt"):
            ratios = [a / b for a, b in zip(speeds[layout], speeds["padded"], strict=True)]
            print(
                f"| {name} | {padding:.0%} | {layout} | **{statistics.median(ratios):.2f}×** "
                f"| {min(ratios):.2f} – {max(ratios):.2f} |",
                flush=True,
            )
    used = memory.peaks()
    print(
        f"\nLog-probs and their gradient, {memory.TOKENS:,} tokens, vocabulary {memory.VOCABULARY:,}, float32, added "
        f"at the peak: {used['whole']:,.0f} MiB whole, {used['chunks']:,.0f} MiB in chunks, "
        f"**{used['chunks'] / used['whole']:.2f}** of it."
    )


if __name__ == "__main__":
    main()
