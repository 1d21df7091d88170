"""Generator processes on one device, as `generator.count` starts them, beside one AsyncLLM as a user would write it.

Invariant: a round begins when every process is warm and idle, and ends with its last group; whoever does not have it
sleeps. Refuses to know what is made of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import redis
import tomli_w

from benchmarks.generator_desk import Desk
from benchmarks.generator_load import Asked, Load, Sampled
from broker.connection import connect
from broker.schema import Ints, Ticket
from broker.settings import redis_url
from deploy.cores import sharing
from producer.__main__ import ProcessRecipe
from producer.turn import devices, turn
from producer.vllm_arguments import set_environment

POLL_SECONDS = 0.2  # when a group came Redis knows
STOP_SECONDS = 60.0


class Fleet:
    """Of generator processes of one recipe, which is written into `folder`."""

    def __init__(self, recipe: ProcessRecipe, of: Load, client: redis.Redis, folder: Path) -> None:
        self.desk = Desk(recipe, client)
        self._of, self._folder, self._warmed = of, folder, 0
        self._path = folder / "recipe.toml"
        self._path.write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
        self._processes: list[subprocess.Popen[bytes]] = []

    def grow(self, count: int) -> None:
        """As many processes, all of them warm: each has sampled. Raises `AssertionError` where one has ended."""
        for number in range(len(self._processes), count):
            command = [sys.executable, "-m", "producer", str(self._path), "--monitoring.generator_port", "0"]
            with (self._folder / f"generator-{number}.log").open("wb") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=sharing(os.environ)))
        while int(self.desk.client.hlen(self.desk.keys.generators)) < count:
            self._check()
            time.sleep(POLL_SECONDS)
        seen: set[str] = set()
        while len(seen) < count:
            self._warmed += 1
            seen |= self._published(self._of.tickets(1000 + self._warmed, 2 * count * self._of.slots))[1]

    def sample(self, round_: int) -> Sampled:
        """A round for every process."""
        count = len(self._processes)
        return self._published(self._of.tickets(2000 + 100 * count + round_, count * self._of.groups))[0]

    def stop(self) -> None:
        """End them all."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _published(self, tickets: Sequence[Ticket]) -> tuple[Sampled, set[str]]:
        began = time.time()
        self.desk.issue(tickets)
        while self.desk.published < len(tickets):
            self._check()
            time.sleep(POLL_SECONDS)
        arrived = self.desk.collect()
        return Sampled(arrived.tokens, arrived.ended - began), set(arrived.generators)

    def _check(self) -> None:
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                words = (self._folder / f"generator-{number}.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"generator {number} has ended with {process.returncode}\n{words}")


@contextmanager
def fleet(recipe: ProcessRecipe, of: Load, folder: Path) -> Iterator[Fleet]:
    """None yet; all are ended."""
    folder.mkdir()
    with connect(recipe.broker, redis_url(recipe.broker)) as client:
        found = Fleet(recipe, of, client, folder)
        try:
            yield found
        finally:
            found.stop()


class Plain:
    """One AsyncLLM as a user would write it: log-probs as dictionaries, text, all statistics.

    It is asked for whole answers, of tokens, without seeds and with as much in flight as the largest fleet: all to its
    advantage.
    """

    def __init__(self, llm: Any, recipe: ProcessRecipe, of: Load) -> None:
        self._llm, self._recipe, self._of = llm, recipe, of
        self._asked = Asked.of(recipe)

    async def sample(self, round_: int) -> Sampled:
        """A round."""
        tickets = self._of.tickets(3000 + round_, self._of.plain_groups)
        waiting, tokens = iter(list(zip(tickets, self._asked.prompts(tickets), strict=True))), list[int]()

        async def slot() -> None:
            for ticket, prompt in waiting:
                tokens.append(await self._request(ticket, prompt))

        began = time.time()
        await asyncio.gather(*(slot() for _ in range(max(self._of.engines) * self._of.slots)))
        return Sampled(sum(tokens), time.time() - began)

    async def _request(self, ticket: Ticket, prompt: Ints) -> int:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self._recipe.sampling
        parameters = SamplingParams(
            n=sampling.group_size,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs: list[Any] = []
        async for result in self._llm.generate({"prompt_token_ids": prompt.tolist()}, parameters, ticket.ticket_id):
            outputs = result.outputs
        assert all(output.logprobs and isinstance(output.text, str) for output in outputs)
        return sum(len(output.token_ids) for output in outputs)


@asynccontextmanager
async def plain(recipe: ProcessRecipe, of: Load) -> AsyncIterator[Plain]:
    """Up and warm."""
    set_environment(recipe.generator.threads)
    os.environ.pop("VLLM_USE_FLASHINFER_SAMPLER", None)  # its own choice: it samples without seeds
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    envs.disable_envs_cache()  # what an engine of ours may have left in this process
    gc.unfreeze()
    settings, on_cpu = recipe.generator, bool(current_platform.is_cpu())
    arguments: dict[str, Any] = {"gpu_memory_utilization": of.plain_share, "dtype": settings.dtype}
    if on_cpu:
        arguments = {"kv_cache_memory_bytes": int((settings.kv_cache_gib or 1.0) * 2**30), "dtype": settings.dtype}
    async with turn(() if on_cpu else devices(1)):
        llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=recipe.run.model,
                max_model_len=recipe.sampling.max_sequence,
                max_num_seqs=max(of.engines) * of.slots * of.group_size,
                enforce_eager=settings.enforce_eager,
                **arguments,
            )
        )
    try:
        found = Plain(llm, recipe, of)
        await found.sample(-1)
        yield found
    finally:
        llm.shutdown()
