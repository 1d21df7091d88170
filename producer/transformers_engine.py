"""The plain engine: transformers and a sampling loop, for machines without vLLM and for runs that must repeat exactly.

Invariant: a group is a function of (weights, prompt, seed) alone, whatever else runs: one worker thread does it all, a
group at a time and always as a batch of G, and weights are replaced between groups, so every span is one version.
Refuses to know tickets, rewards and where a policy's folder comes from.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from broker.errors import Refused
from broker.schema import Floats, Ints, VersionSpan
from producer import model_files, weights
from producer.engine import Completion
from producer.settings import GeneratorRecipe

T = TypeVar("T")


class TransformersEngine:
    """`Engine` over a Hugging Face causal language model in this process."""

    def __init__(self, model_path: str, recipe: GeneratorRecipe) -> None:
        """Nothing is loaded before `start`."""
        self._path, self._recipe = model_path, recipe
        self._version = -1
        self._still = 0.0
        self._model: Any = None
        self._eos = torch.empty(0, dtype=torch.long)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")

    @property
    def slots(self) -> int:
        """Groups it takes at once; they are sampled one after the other."""
        return self._recipe.generator.slots

    @property
    def policy_version(self) -> int:
        """Version of the weights it holds; -1 before the first refresh."""
        return self._version

    @property
    def still_seconds(self) -> float:
        """Seconds in which weights were copied instead of anything being sampled."""
        return self._still

    @property
    def alive(self) -> bool:
        """It lives in this process: as long as that does."""
        return True

    async def start(self) -> None:
        """Load the model. Raises `Refused`."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")  # a stop has ended the last one
        await self._in_worker(self._load_model)

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:  # noqa: ARG002
        """G completions of `prompt` (P,). Cancelling the task ends the loop at its next token."""
        abandoned = threading.Event()
        try:
            return await self._in_worker(lambda: self._sample(prompt, seed, abandoned))
        finally:
            abandoned.set()

    async def refresh(self, folder: Path, policy_version: int) -> None:
        """Take the weights in `folder`. Raises `OSError` or `ValueError` before anything has changed."""
        await self._in_worker(lambda: self._replace(folder, policy_version))

    async def stop(self) -> None:
        """Free the model."""
        if self._model is not None:  # else it was stopped before
            await self._in_worker(self._free)
        self._worker.shutdown()

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    # -- in the worker thread ------------------------------------------------------------------------------------------

    def _load_model(self) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        settings = self._recipe.generator
        device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise Refused("generator.device is cuda and torch sees no CUDA device", "set generator.device = 'cpu'")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        eos = model_files.end_tokens(self._path, self._recipe)
        dtype = self._recipe.policy.dtype if settings.dtype == "auto" else settings.dtype
        logging.disable_progress_bar()
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._path,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=self._recipe.run.trust_remote_code,
            )
        except (OSError, ValueError, RuntimeError) as error:
            cause = f"transformers cannot load {self._path} ({model_files.first_line(error)})"
            raise Refused(cause, "name a complete model in run.model") from error
        self._model = model.to(device).eval()
        self._eos = torch.tensor(eos, dtype=torch.long, device=device)

    def _free(self) -> None:
        self._model, self._version = None, -1

    @torch.no_grad()
    def _replace(self, folder: Path, version: int) -> None:
        began, sampling = time.perf_counter(), self._version >= 0
        try:
            self._copy(folder)
        finally:
            self._still += time.perf_counter() - began if sampling else 0.0
        self._version = version

    def _copy(self, folder: Path) -> None:
        own = self._model.state_dict()
        named_once = [
            name for tensors in (self._model.named_parameters(), self._model.named_buffers()) for name, _ in tensors
        ]
        tied = own.keys() - set(named_once)
        expected = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in tied}
        base = Path(self._path)
        model_files.verify(weights.shapes(folder, base), expected, optional=tied)
        fresh = dict(weights.tensors(folder, base))
        for name in expected:
            own[name].copy_(fresh[name])

    @torch.inference_mode()
    def _sample(self, prompt: Ints, seed: int, abandoned: threading.Event) -> list[Completion]:
        if self._version < 0:
            raise RuntimeError("the engine holds no policy version")
        sampling, device = self._recipe.sampling, self._eos.device
        generator = torch.Generator(device).manual_seed(seed)
        # The prompt is the same for all G: it is computed once, and its keys and values are repeated.
        inputs = torch.as_tensor(prompt, dtype=torch.long, device=device)[None]  # (1, P)
        out = self._model(input_ids=inputs, use_cache=True, logits_to_keep=1)
        out.past_key_values.batch_repeat_interleave(sampling.group_size)
        logits = out.logits[:, -1].expand(sampling.group_size, -1)  # (G, V)
        tokens, logprobs, ended = [], [], torch.zeros(sampling.group_size, dtype=torch.bool, device=device)
        for length in range(1, sampling.max_tokens + 1):
            token, logprob = draw(logits, sampling.temperature, generator)
            tokens.append(token)
            logprobs.append(logprob)
            ended |= torch.isin(token, self._eos)
            if length == sampling.max_tokens or bool(ended.all()) or abandoned.is_set():
                break
            out = self._model(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)
            logits = out.logits[:, -1]
        return self._cut(torch.stack(tokens, 1).cpu().numpy(), torch.stack(logprobs, 1).cpu().numpy())

    def _cut(self, tokens: Any, logprobs: Floats) -> list[Completion]:
        """Rows (G, T) up to and including their first end token."""
        ends = np.isin(tokens, self._eos.cpu().numpy())  # (G, T)
        completions = []
        for row, ids in enumerate(tokens):
            length = int(ends[row].argmax()) + 1 if ends[row].any() else len(ids)
            span = VersionSpan(self._version, 0, length)
            kept, kept_logprobs = ids[:length].astype(np.int32), logprobs[row, :length].astype(np.float32)
            completions.append(Completion(kept, kept_logprobs, (span,), not ends[row].any()))
        return completions


def draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (G,) of each row of `logits` (G, V), with its log-prob (G,) under the temperature, in float32."""
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    token = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return token[:, 0], logprobs.gather(-1, token)[:, 0]
