"""`python -m producer RECIPE`: one generator process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import uuid
from pathlib import Path

from broker.audit_log import AuditLog
from broker.cli import guarded, process_recipe
from broker.connection import connect, require
from broker.heap import keep_what_is_freed, pass_over_what_is_loaded
from broker.joining import Fingerprint, agree, join, register_task
from broker.keys import Keys
from broker.log import setup
from broker.patience import Patience
from broker.points import reached
from broker.policies import reader
from broker.settings import redis_url
from broker.streams import create_groups
from broker.tickets import TicketStream
from monitoring.metrics import GeneratorMetrics
from monitoring.settings import MonitoringSettings
from monitoring.watchdog import watched
from producer.engine import Engine
from producer.generator import Generator
from producer.prompts import fitting
from producer.settings import GeneratorRecipe
from producer.tasks.registry import make_task
from producer.tokens import Tokens
from producer.verify import VerifierPool


class ProcessRecipe(GeneratorRecipe):
    """The generator's recipe and where its metrics go."""

    monitoring: MonitoringSettings = MonitoringSettings()


def make_engine(recipe: GeneratorRecipe) -> Engine:
    """The configured engine; only its library is imported."""
    if recipe.generator.engine == "vllm":
        from producer.vllm_engine import VllmEngine

        return VllmEngine(recipe.run.model, recipe)
    from producer.transformers_engine import TransformersEngine

    return TransformersEngine(recipe.run.model, recipe)


async def serve_run(recipe: ProcessRecipe, metrics: GeneratorMetrics) -> None:
    """Join the run, start the engine, generate until told to stop."""
    url, patience = redis_url(recipe.broker), Patience(recipe.broker.patience, metrics.redis_missed)
    with connect(recipe.broker, url) as impatient:
        require(impatient)
    client = connect(recipe.broker, url, patience=patience)
    blocking = connect(recipe.broker, url, blocking_seconds=recipe.broker.lease_seconds, patience=patience)
    keys = Keys(recipe.run.name)
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    tokens = Tokens(Path(recipe.run.model), recipe.task, recipe.run.trust_remote_code)
    limit = recipe.sampling.max_prompt_tokens
    task = fitting(make_task(recipe.task), tokens, limit, recipe.task.drop_long_prompts)
    fingerprint = Fingerprint.of(recipe)
    create_groups(client, keys)
    metrics.starting("learner")
    await asyncio.to_thread(join, client, keys, fingerprint)
    card = task.card()

    def belong() -> None:
        agree(client, keys, fingerprint)
        register_task(client, keys, card)

    belong()
    reached("generator.joined")

    stopping, hurried = asyncio.Event(), asyncio.Event()

    def leave() -> None:
        (hurried if stopping.is_set() else stopping).set()  # a second signal means: at once

    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, leave)
    engine = make_engine(recipe)
    if recipe.generator.engine == "vllm":
        metrics.show_vllm()
    scorings = [part.scoring for part in task.parts]
    verifiers = VerifierPool(scorings, recipe.generator.verifier_workers, recipe.generator.verifier_seconds)
    metrics.starting("engine")
    try:
        await verifiers.start()
        await engine.start()
        gc.collect()
        pass_over_what_is_loaded()
        lease, deliveries = recipe.broker.lease_seconds, recipe.broker.max_deliveries
        tickets = TicketStream(client, blocking, keys, name, lease, deliveries, patience)
        policy = reader(recipe, client, keys)
        generator = Generator(
            name,
            recipe,
            client,
            keys,
            tickets,
            policy,
            engine,
            task,
            tokens,
            verifiers,
            metrics,
            belong,
            AuditLog.of(recipe.broker, url, keys, metrics.audit_lost.inc),
            stopping=stopping,
            hurried=hurried,
        )
        pass_over_what_is_loaded()
        await generator.run()
    finally:
        await verifiers.stop()
        await engine.stop()


@guarded
def main() -> None:
    """Entry point."""
    setup("generator")
    keep_what_is_freed()
    recipe = process_recipe(ProcessRecipe, "producer", "one generator of a run")
    metrics = GeneratorMetrics(stall_seconds=recipe.monitoring.stall_seconds)
    with watched(metrics, recipe.monitoring, recipe.monitoring.generator_port):
        asyncio.run(serve_run(recipe, metrics))


if __name__ == "__main__":
    main()
