"""`python -m consumer RECIPE`: the learner process."""

from __future__ import annotations

import gc
import json
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch

from broker.cli import guarded, process_recipe
from broker.connection import address, connect, require
from broker.errors import Behind
from broker.fence import Fence
from broker.fingerprint import copy_tokenizer_files
from broker.joining import Fingerprint, agree, announce, wait_for_task
from broker.keys import Keys
from broker.ledger import Ledger
from broker.log import setup
from broker.patience import Patience
from broker.points import reached
from broker.policy import PolicyStore
from broker.run_folder import RunFolder
from broker.settings import redis_url
from broker.streams import RolloutStream, create_groups
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from consumer.inbox import CLAIM_SECONDS
from consumer.learner import Learner
from consumer.memory import require_room
from consumer.model import PolicyModel
from consumer.record import StepTally
from consumer.settings import LearnerRecipe
from consumer.tickets import Flow
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics, serve
from monitoring.settings import MonitoringSettings
from monitoring.watchdog import Watchdog


class ProcessRecipe(LearnerRecipe):
    """The learner's recipe and where its metrics go."""

    monitoring: MonitoringSettings = MonitoringSettings()


def fill_version(model: PolicyModel, source: Path, folder: Path, snapshot: dict[str, Any]) -> None:
    """A policy version is a model directory any library can load: weights, configuration, the tokenizer's bytes."""
    model.write(folder, snapshot)
    copy_tokenizer_files(source, folder)


def build(recipe: ProcessRecipe, metrics: LearnerMetrics) -> Learner:
    """Connect, become the run's only learner, load the model, wait for the task."""
    url, patience = redis_url(recipe.broker), Patience(recipe.broker.patience, metrics.redis_missed)
    client = connect(recipe.broker, url, patience=patience)
    blocking = connect(recipe.broker, url, blocking_seconds=CLAIM_SECONDS, patience=patience)
    keys, source, folder = Keys(recipe.run.name), Path(recipe.run.model), RunFolder.of(recipe.run)
    folder.make()
    fingerprint = Fingerprint.of(recipe)
    agree(client, keys, fingerprint)
    metrics.starting("model")
    model = PolicyModel.load(source, recipe, recipe.learner)
    reference = _reference(recipe, source)
    announce(client, keys, fingerprint, json.dumps(recipe.model_dump(mode="json")))
    create_groups(client, keys)
    reached("learner.announced")
    fence = Fence(client, keys, patience)
    ledger, evaluations = Ledger(client, keys, "train", fence), Ledger(client, keys, "eval", fence)
    fence.take_over()
    metrics.starting("task card")
    card = wait_for_task(client, keys)
    metrics.starting("none")
    settings = recipe.learner
    flow = Flow(
        recipe.capacity,
        settings.groups_per_step,
        recipe.run.steps * settings.groups_per_step,
        card.train,
        recipe.run.seed,
    )
    policy = PolicyStore(client, keys, recipe.policy_directory, recipe.policy.keep, recipe.policy.lease_seconds)
    tally = StepTally(folder.steps, recipe.run.steps, metrics)
    evaluator = Evaluator(evaluations, min(settings.eval_problems, card.held_out), recipe.run.seed, tally.evaluation)
    return Learner(
        recipe,
        client,
        keys,
        RolloutStream(client, blocking, keys, patience=patience),
        Dispatch(ledger, policy, flow),
        policy,
        Trainer(model, recipe, reference),
        evaluator,
        tally,
        metrics,
        partial(fill_version, model, source),
    )


def _reference(recipe: ProcessRecipe, source: Path) -> PolicyModel | None:
    """The frozen model that the objective takes a KL to, if it does."""
    if not recipe.objective.needs_reference:
        return None
    return PolicyModel.load(Path(recipe.objective.reference or source), recipe, recipe.learner).frozen()


def finish(recipe: ProcessRecipe, metrics: LearnerMetrics) -> bool:
    """Run to the end; False if Redis has lost something, and the run is to be taken up again from its checkpoint."""
    learner = build(recipe, metrics)
    try:
        outcome = learner.run()
    except Behind as loss:
        structlog.get_logger("learner").warning(
            "the run is taken up again from its newest checkpoint", because=str(loss)
        )
        learner.close()
        del learner
        gc.collect()  # a learner holds itself in cycles: its weights must be gone before the next one loads its own
        torch.cuda.empty_cache()
        return False
    final = RunFolder.of(recipe.run).model
    fill_version(learner.trainer.model, Path(recipe.run.model), final, learner.trainer.snapshot())
    reached("learner.ended")
    learner.client.set(learner.keys.finished, outcome)
    return True


def require_redis(recipe: ProcessRecipe) -> None:
    """Raises `Refused` where Redis cannot carry this run. Who begins does not wait for one that is not there."""
    with connect(recipe.broker, redis_url(recipe.broker)) as client:
        require(client)
        require_room(recipe, client.info("memory"), address(client))


@guarded
def main() -> None:
    """Entry point."""
    setup("learner")
    recipe = process_recipe(ProcessRecipe, "consumer", "the learner of a run")
    if recipe.learner.threads:
        torch.set_num_threads(recipe.learner.threads)
    metrics = LearnerMetrics(stall_seconds=recipe.monitoring.stall_seconds)
    server = serve(metrics, recipe.monitoring.host, recipe.monitoring.learner_port, metrics.health)
    try:
        require_redis(recipe)
        with Watchdog(metrics, recipe.monitoring.warn_seconds):
            while not finish(recipe, metrics):
                pass
    finally:
        server.stop()


if __name__ == "__main__":
    main()
