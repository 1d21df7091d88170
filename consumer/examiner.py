"""`python -m consumer.examiner RECIPE`: an evaluation of a model as it is, on the path that training takes, without it.

Invariant: the model is published once, as version 0, untouched; every held-out problem that was asked for is answered
or counted as failed. Refuses to know weights: it loads none.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from broker.cli import guarded, process_recipe
from broker.connection import connect, require
from broker.fence import Fence
from broker.fingerprint import copy_tokenizer_files
from broker.joining import Fingerprint, announce, wait_for_task
from broker.keys import Keys
from broker.ledger import Ledger
from broker.log import setup
from broker.patience import Patience
from broker.policies import writer
from broker.run_folder import RunFolder
from broker.settings import redis_url
from broker.streams import RolloutStream, create_groups
from consumer.evaluation import Evaluator, labels_of
from consumer.inbox import CLAIM_COUNT, CLAIM_SECONDS
from consumer.recipe import ProcessRecipe
from consumer.record import StepTally
from monitoring.metrics import LearnerMetrics
from monitoring.watchdog import watched

LABEL = "alone"
PARTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def publish(model: Path, folder: Path) -> None:
    """The model's files as a policy version: linked where they can be, since nobody changes them."""
    for path in sorted({path for pattern in PARTS for path in model.glob(pattern)}):
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, folder / path.name)
    copy_tokenizer_files(model, folder)


def examine(recipe: ProcessRecipe, metrics: LearnerMetrics) -> None:
    """Issue the evaluation, or take it up again, and wait until every answer is in."""
    url, patience = redis_url(recipe.broker), Patience(recipe.broker.patience, metrics.redis_missed)
    with connect(recipe.broker, url) as impatient:
        require(impatient)
    client = connect(recipe.broker, url, patience=patience)
    blocking = connect(recipe.broker, url, blocking_seconds=CLAIM_SECONDS, patience=patience)
    keys, fingerprint, folder = Keys(recipe.run.name), Fingerprint.of(recipe), RunFolder.of(recipe.run)
    folder.make()
    announce(client, keys, fingerprint, json.dumps(recipe.whole(), default=str))
    create_groups(client, keys)
    fence = Fence(client, keys, patience)
    ledger = Ledger(client, keys, "eval", fence)
    fence.take_over()
    metrics.starting("task card")
    card = wait_for_task(client, keys)
    metrics.starting("none")
    policy = writer(recipe, client, keys, fence)
    policy.write(0, lambda at: publish(Path(recipe.run.model), at), replace=True)
    tally = StepTally(folder.steps, recipe.run.steps, metrics)
    problems = min(recipe.learner.eval_problems, card.held_out)
    evaluator = Evaluator(ledger, problems, recipe.run.seed, tally.evaluation, labels_of(card))
    with ledger.transaction() as pipe:
        policy.point(pipe, 0)
    evaluator.resume()
    evaluator.start(0, LABEL)
    metrics.ready_when(lambda: True)
    rollouts = RolloutStream(client, blocking, keys, patience=patience)
    _collect(evaluator, rollouts, metrics)
    tally.ended("finished", {})
    client.set(keys.finished, "finished")


def _collect(evaluator: Evaluator, rollouts: RolloutStream, metrics: LearnerMetrics) -> None:
    arrivals = rollouts.pending()
    while True:
        for arrival in arrivals:
            metrics.progress()
            evaluator.add(arrival)
        if not evaluator.running:
            return
        metrics.waiting("evaluation")
        arrivals = rollouts.pending() if rollouts.disturbed else rollouts.claim(CLAIM_COUNT, CLAIM_SECONDS)


@guarded
def main() -> None:
    """Entry point."""
    setup("examiner")
    recipe = process_recipe(ProcessRecipe, "consumer.examiner", "an evaluation without training")
    metrics = LearnerMetrics(stall_seconds=recipe.monitoring.stall_seconds)
    with watched(metrics, recipe.monitoring, recipe.monitoring.learner_port):
        examine(recipe, metrics)


if __name__ == "__main__":
    main()
