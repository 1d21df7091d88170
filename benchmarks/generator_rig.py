"""One vLLM engine used in two ways: by production's Generator over a real Redis, and bare.

Invariant: both are given the same tickets, hence prompts, seeds and sampling parameters, have as many requests in
flight, and begin with an empty prefix cache; tokens are counted as they came. Refuses to know what is made of it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from benchmarks.generator_desk import Desk
from benchmarks.generator_load import Asked, Pause, Sampled
from broker.audit_log import AuditLog
from broker.connection import connect
from broker.joining import register_task
from broker.patience import Patience
from broker.policies import reader
from broker.schema import Ints, Ticket
from broker.settings import redis_url
from broker.tickets import TicketStream
from monitoring.metrics import GeneratorMetrics
from producer.__main__ import ProcessRecipe
from producer.generator import Generator
from producer.verify import VerifierPool
from producer.vllm_arguments import sampling_parameters
from producer.vllm_engine import VllmEngine

POLL_SECONDS = 0.2  # when a group came Redis knows


class TimedEngine(VllmEngine):
    """Production's, with a clock at its pauses."""

    asked_seconds = 0.0  # in them, from asking vLLM to pause: it finishes the steps that it has begun

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        began = time.perf_counter()
        async with super()._paused():
            yield
        self.asked_seconds += time.perf_counter() - began


@dataclass
class Rig:
    """An engine that runs, and what production puts around it."""

    recipe: ProcessRecipe
    desk: Desk
    engine: TimedEngine
    asked: Asked
    verifiers: VerifierPool

    async def ours(self, tickets: Sequence[Ticket], versions: Sequence[int] = ()) -> Sampled:
        """Through a Generator that waits for tickets; in even steps each of `versions` becomes the newest."""
        await self._forget()
        metrics = GeneratorMetrics()
        metrics.show_vllm()
        pauses: list[Pause] = []
        with self._generator(metrics) as generator:
            running = asyncio.create_task(generator.run())
            try:
                await self._until(running, lambda: metrics.wait.reason == "ticket")
                began = time.time()
                self.desk.issue(tickets)
                publishing = asyncio.create_task(self._publish(versions, len(tickets), pauses))
                await self._until(running, lambda: self.desk.published == len(tickets))
                await publishing
            finally:
                generator.stopping.set()
                await running
        arrived = self.desk.collect()
        return Sampled(arrived.tokens, arrived.ended - began, pauses)

    async def bare(self, tickets: Sequence[Ticket]) -> Sampled:
        """By vLLM's own `generate`, a new request as soon as one is done."""
        await self._forget()
        waiting, tokens = iter(list(zip(tickets, self.asked.prompts(tickets), strict=True))), list[int]()

        async def slot() -> None:
            for ticket, prompt in waiting:
                tokens.append(await self._request(ticket, prompt))

        began = time.time()
        await asyncio.gather(*(slot() for _ in range(self.engine.slots)))
        return Sampled(sum(tokens), time.time() - began)

    async def _request(self, ticket: Ticket, prompt: Ints) -> int:
        """Tokens of the answers to one."""
        asked = {"type": "token", "prompt_token_ids": prompt.tolist()}
        parameters = sampling_parameters(self.recipe, self.engine._eos, ticket.seed)
        outputs = []
        async for result in self.engine._llm.generate(asked, parameters, f"bare {ticket.ticket_id}"):
            outputs = result.outputs
        return sum(len(output.token_ids) for output in outputs)

    async def _publish(self, versions: Sequence[int], groups: int, pauses: list[Pause]) -> None:
        for number, version in enumerate(versions, 1):
            while self.desk.published < number * groups / (len(versions) + 1):
                await asyncio.sleep(POLL_SECONDS)
            still, asked = self.engine.still_seconds, self.engine.asked_seconds
            self.desk.point(version)
            while self.engine.asked_seconds == asked:
                await asyncio.sleep(POLL_SECONDS)
            assert self.engine.policy_version == version
            pauses.append(Pause(self.engine.still_seconds - still, self.engine.asked_seconds - asked))

    async def _forget(self) -> None:
        """A prefix of an earlier round is no longer known."""
        await self.engine._llm.reset_prefix_cache()

    async def _until(self, running: asyncio.Task[None], seen: Callable[[], bool]) -> None:
        while not seen():
            await asyncio.sleep(POLL_SECONDS)
            if running.done():
                running.result()
                raise AssertionError("the generator has left")

    @contextmanager
    def _generator(self, metrics: GeneratorMetrics) -> Iterator[Generator]:
        """As `producer.__main__` makes it."""
        of, keys = self.recipe.broker, self.desk.keys
        url, name, patience = redis_url(of), f"bench-{time.monotonic_ns()}", Patience(of.patience, metrics.redis_missed)
        with (
            connect(of, url, patience=patience) as client,
            connect(of, url, blocking_seconds=of.lease_seconds, patience=patience) as blocking,
        ):
            yield Generator(
                name,
                self.recipe,
                client,
                keys,
                TicketStream(client, blocking, keys, name, of.lease_seconds, of.max_deliveries, patience),
                reader(self.recipe, client, keys),
                self.engine,
                self.asked.task,
                self.asked.tokens,
                self.verifiers,
                metrics,
                lambda: register_task(client, keys, self.asked.task.card()),
                AuditLog.of(of, url, keys, metrics.audit_lost.inc),
            )


@asynccontextmanager
async def rig(recipe: ProcessRecipe) -> AsyncIterator[Rig]:
    """Engine and verifiers up, version 0 loaded."""
    engine, asked = TimedEngine(recipe.run.model, recipe), Asked.of(recipe)
    scorings = [part.scoring for part in asked.task.parts]
    verifiers = VerifierPool(scorings, recipe.generator.verifier_workers, recipe.generator.verifier_seconds)
    with connect(recipe.broker, redis_url(recipe.broker)) as client:
        desk = Desk(recipe, client)
        try:
            await verifiers.start()
            await engine.start()
            gc.collect()
            gc.freeze()  # as `producer.__main__` does
            await engine.refresh(desk.policy.open(0), 0)
            yield Rig(recipe, desk, engine, asked, verifiers)
        finally:
            await verifiers.stop()
            await engine.stop()
