"""Tiny models that are taught what an answer looks like, so that the rewards in a group differ."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.fingerprint import copy_tokenizer_files
from broker.loading import load
from deploy.prepare import prepare
from producer.settings import GeneratorRecipe
from producer.tasks.registry import make_task
from producer.tokens import Tokens
from tests.system.processes import ROOT

RATE, SEED = 3e-3, 3


def teach(untaught: Path, folder: Path, lessons: Iterable[tuple[Tensor, int]]) -> Path:
    """The model in `untaught` after plain cross-entropy, a step a lesson, as a complete model directory `folder`.

    A lesson is rows of token ids (R, T) and how many of the last ones are the answer. One thread: small models only
    lose by sharing work, and the result is the same every time.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(untaught)
    optimizer, threads = torch.optim.Adam(model.parameters(), lr=RATE), torch.get_num_threads()
    torch.set_num_threads(1)
    for ids, length in lessons:
        logits = model(input_ids=ids).logits[:, -length - 1 : -1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -length:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    copy_tokenizer_files(untaught, folder)
    return folder


def taught_to_add(root: Path) -> Path:
    """`random:llama-tiny` after sixty steps of learning what an answer to a sum looks like, in a folder of `root`."""
    folder = prepare("random:llama-tiny", root)
    of = load(GeneratorRecipe, ROOT / "recipes/tiny.toml", ["--run.model", str(folder)], {})
    tokenizer, luck = AutoTokenizer.from_pretrained(folder), random.Random(0)
    tokens, problems = Tokens(folder, of.task), make_task(of.task).train

    def lesson() -> tuple[Tensor, int]:
        numbers = luck.choice([range(10), range(10, 19)])  # answers of one length at a time
        answers = [[*tokenizer(str(luck.choice(numbers)))["input_ids"], *tokens.stop_ids] for _ in range(16)]
        rows = [[*tokens.prompt_ids(luck.choice(problems)).tolist(), *answer] for answer in answers]
        return torch.tensor(rows), len(answers[0])

    return teach(folder, root / "taught", (lesson() for _ in range(60)))
