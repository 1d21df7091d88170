"""Tiny models that are taught what an answer looks like, so that the rewards in a group differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from broker.fingerprint import copy_tokenizer_files

RATE = 3e-3


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
