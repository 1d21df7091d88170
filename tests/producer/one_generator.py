"""One generator in this process: production's Generator over a real Redis, the plain engine on a tiny random model,
verifiers in worker processes of their own. A desk issues its tickets and reads what it publishes.

Invariant: nothing here blocks longer than a deadline. Refuses to know what a test breaks.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import redis

from broker.audit_log import AuditLog
from broker.joining import register_task
from broker.keys import Keys
from broker.policy import PolicyStore
from broker.schema import RolloutGroup, Ticket, encode_ticket
from broker.streams import RolloutStream, create_groups
from broker.tickets import TicketStream
from monitoring.metrics import GeneratorMetrics
from producer.generator import Generator
from producer.settings import GeneratorRecipe
from producer.tasks.base import FixedTask, Part, Scoring
from producer.tasks.registry import make_task
from producer.tokens import Tokens
from producer.transformers_engine import TransformersEngine
from producer.verify import VerifierPool
from tests.clock import Clock

SECONDS = 30.0


class OneGenerator:
    """A generator and whoever gives it work; version 0 is the model's own weights."""

    engine_class: type[TransformersEngine] = TransformersEngine

    def __init__(self, client: redis.Redis, keys: Keys, folder: Path, model: Path, verifier: str = "") -> None:
        self.client, self.keys, self.verifier = client, keys, verifier
        self.recipe = GeneratorRecipe.model_validate(
            {
                "run": {"name": keys.run, "model": str(model), "steps": 1},
                "sampling": {"group_size": 2, "max_tokens": 4, "max_prompt_tokens": 128},
                "generator": {
                    "engine": "transformers",
                    "slots": 2,
                    "device": "cpu",
                    "dtype": "float32",
                    "drain_seconds": 0,
                },
                "task": {"name": "addition", "held_out": 2},
            }
        )
        create_groups(client, keys)
        self.audit = AuditLog.off()
        self.hurried = asyncio.Event()
        self.clock = Clock(0.0)
        self.metrics = GeneratorMetrics(stall_seconds=600.0, clock=self.clock)
        self.policy = PolicyStore(client, keys, folder / "policy", 2, 60.0)
        self.rollouts = RolloutStream(client, client, keys)
        self.publish_version(0)

    def publish_version(self, version: int) -> None:
        """The model's own weights once more."""

        def fill(at: Path) -> None:
            shutil.copytree(self.recipe.run.model, at, dirs_exist_ok=True)

        self.policy.write(version, fill)
        with self.client.pipeline() as pipe:
            self.policy.point(pipe, version)
            pipe.execute()

    def figure(self, name: str, **labels: str) -> float:
        """A metric of the generator, 0 where there is none yet."""
        return self.metrics.registry.get_sample_value(f"headrace_generator_{name}", labels) or 0.0

    def issue(self, ticket: Ticket) -> None:
        """A ticket, as dispatch would."""
        fields: dict[str | bytes, str | bytes] = {"ticket_id": ticket.ticket_id, "payload": encode_ticket(ticket)}
        self.client.xadd(self.keys.tickets(ticket.kind), fields)  # type: ignore[arg-type]

    def run_until(self, seen: Callable[[], bool]) -> None:
        """Generate until something has happened. Raises what ended the generator before."""
        asyncio.run(asyncio.wait_for(self._run(seen), SECONDS))

    def published(self, count: int) -> list[RolloutGroup]:
        """Generate until so many groups are out."""
        out: list[RolloutGroup] = []

        def seen() -> bool:
            out.extend(a.group for a in self.rollouts.claim(10, 0) if a.group is not None)
            return len(out) >= count

        self.run_until(seen)
        return out

    async def _run(self, seen: Callable[[], bool]) -> None:
        task, recipe = make_task(self.recipe.task), self.recipe
        assert isinstance(task, FixedTask)
        if self.verifier:
            task = replace(task, parts=(Part("tricks", Scoring(self.verifier)),))
        engine = self.engine_class(recipe.run.model, recipe)
        verifiers = VerifierPool([part.scoring for part in task.parts])
        tickets = TicketStream(self.client, self.client, self.keys, "one", 60.0, 3)
        tokens = Tokens(Path(recipe.run.model), recipe.task)
        stopping = asyncio.Event()
        generator = Generator(
            "one", recipe, self.client, self.keys, tickets, self.policy, engine, task, tokens, verifiers, self.metrics,
            lambda: register_task(self.client, self.keys, task.card()), self.audit,
            stopping=stopping, hurried=self.hurried,
        )  # fmt: skip
        await engine.start()
        running = asyncio.create_task(generator.run())
        try:
            while not seen() and not running.done():
                await asyncio.sleep(0.02)
            stopping.set()
            await running
        finally:
            running.cancel()
            await verifiers.stop()
            await engine.stop()
