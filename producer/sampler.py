"""From a ticket to its group: the problem's prompt, completions at a version the ticket allows, verdicts.

Invariant: nothing below the ticket's `min_policy_version` is sampled, in a deterministic run nothing but it; whatever
an engine raises, or a silence of `sample_seconds`, comes out as `Unsampled`. Refuses to know streams and leases.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from broker.points import reached
from broker.schema import Ints, RolloutGroup, Ticket, tombstone
from monitoring.metrics import GeneratorMetrics
from producer.engine import Completion, Engine, Unsampled
from producer.keeper import EngineKeeper
from producer.refresher import Refresher
from producer.reward import rewarded
from producer.rollout import assemble
from producer.settings import GeneratorRecipe
from producer.tasks import Problem, Task, Verdict
from producer.tokens import Tokens
from producer.verify import VerifierPool


@dataclass(frozen=True)
class Served:
    """The group of a ticket, and what is true of it that does not travel with it. Times in seconds."""

    group: RolloutGroup
    problem: Problem | None = None
    prompt: Ints | None = None
    completions: Sequence[Completion] = ()
    texts: Sequence[str] = ()
    verdicts: Sequence[Verdict] = ()
    waited: float = 0.0  # for a version that would do
    verified: float = 0.0


@dataclass
class Sampler:
    """Of one generator, `name`."""

    name: str
    recipe: GeneratorRecipe
    engine: Engine
    keeper: EngineKeeper
    refresher: Refresher
    task: Task
    tokens: Tokens
    verifiers: VerifierPool
    metrics: GeneratorMetrics

    async def serve(self, ticket: Ticket, deliveries: int, sampled: Callable[[], Awaitable[None]]) -> Served:
        """The group of a ticket, or its tombstone; `sampled` is called once the engine has done its part.

        Raises `Unsampled`, and what a broken verifier pool raises.
        """
        split = self.task.train if ticket.kind == "train" else self.task.held_out
        if ticket.problem >= len(split):
            return Served(tombstone(ticket, f"no problem {ticket.problem} in a split of {len(split)}", self.name))
        problem = split[ticket.problem]
        prompt = self.tokens.prompt_ids(problem)
        if len(prompt) > self.recipe.sampling.max_prompt_tokens:
            limit = self.recipe.sampling.max_prompt_tokens
            why = f"the prompt has {len(prompt)} tokens, the limit is {limit}"
            return Served(tombstone(ticket, why, self.name), problem, prompt)
        began = time.perf_counter()
        completions, waited = await self._completions(ticket, prompt, f"{ticket.ticket_id}/{deliveries}")
        seconds = time.perf_counter() - began
        await sampled()
        texts = [self.tokens.decode(c.tokens) for c in completions]
        began = time.perf_counter()
        with self.metrics.phase("verify"):
            verdicts = await self.verifiers.verify(problem, texts)
        verified = time.perf_counter() - began
        weights, limit = self.task.parts[problem.part].reward, self.recipe.sampling.max_tokens
        verdicts = [
            rewarded(v, weights, text, c, limit) for v, text, c in zip(verdicts, texts, completions, strict=True)
        ]
        group = assemble(ticket, prompt, completions, verdicts, generator=self.name, sample_seconds=seconds)
        return Served(group, problem, prompt, completions, texts, verdicts, waited, verified)

    async def _completions(self, ticket: Ticket, prompt: Ints, request: str) -> tuple[list[Completion], float]:
        """They, and for how long their version was waited for."""
        began = time.perf_counter()
        if self.recipe.run.deterministic:
            async with AsyncExitStack() as held:
                with self.metrics.phase("wait_version"):
                    await held.enter_async_context(self.refresher.exact)
                    await self.refresher.hold_exactly(ticket.min_policy_version)
                waited = time.perf_counter() - began
                with self.metrics.phase("sample"):
                    return await self._sample(prompt, ticket.seed, request), waited
        with self.metrics.phase("wait_version"):
            await self.refresher.hold(ticket.min_policy_version)
        waited = time.perf_counter() - began
        with self.metrics.phase("sample"):
            return await self._sample(prompt, ticket.seed, request), waited

    async def _sample(self, prompt: Ints, seed: int, request: str) -> list[Completion]:
        try:
            reached("generator.sampling")
            async with asyncio.timeout(self.recipe.generator.sample_seconds):
                completions = await self.engine.sample(prompt, seed, request)
            reached("generator.sampled")
        except TimeoutError:
            seconds = self.recipe.generator.sample_seconds
            raise Unsampled(f"no answer within {seconds:g} s", hung=True) from None
        except Exception as error:
            raise Unsampled(f"{type(error).__name__}: {error}") from error
        self.keeper.answered()
        return completions
