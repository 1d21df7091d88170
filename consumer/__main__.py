"""`python -m consumer RECIPE`: the learner process."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch

from broker.audit_log import AuditLog
from broker.child import die_with_parent
from broker.cli import guarded, process_recipe
from broker.connection import address, connect, require
from broker.errors import Behind
from broker.fence import Fence
from broker.fingerprint import copy_tokenizer_files
from broker.heap import keep_what_is_freed, pass_over_what_is_loaded
from broker.joining import Fingerprint, agree, announce, wait_for_task
from broker.keys import Keys
from broker.ledger import Ledger
from broker.log import setup
from broker.patience import Patience
from broker.points import reached
from broker.policies import writer
from broker.run_folder import RunFolder
from broker.settings import redis_url
from broker.streams import RolloutStream, create_groups
from consumer.agreement import must_agree
from consumer.crew import LeadingTrainer, dismiss, follow
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator, labels_of
from consumer.inbox import CLAIM_SECONDS
from consumer.learner import Learner
from consumer.memory import require_room
from consumer.model import PolicyModel, Scorer, device_of
from consumer.ranks import Ranks
from consumer.recipe import ProcessRecipe
from consumer.record import StepTally
from consumer.tickets import Flow
from consumer.trainer import Trainer
from monitoring.metrics import LearnerMetrics
from monitoring.watchdog import watched


def fill_version(model: PolicyModel, source: Path, folder: Path, snapshot: Mapping[str, Any]) -> None:
    """A policy version is a model directory any library can load: weights, configuration, the tokenizer's bytes."""
    model.write(folder, snapshot)
    copy_tokenizer_files(source, folder)


def write_final(folder: Path, source: Path, trainer: Trainer) -> None:
    """The run's last word: its model appears whole or not at all, for its presence says that the run is over."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    fill_version(trainer.model, source, unfinished, trainer.snapshot("whole"))
    if trainer.model.lora:
        trainer.model.write(unfinished / "adapter", trainer.snapshot("adapter"))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def build(recipe: ProcessRecipe, metrics: LearnerMetrics, ranks: Ranks) -> Learner:
    """Connect, become the run's only learner, load the model, wait for the task."""
    url, patience = redis_url(recipe.broker), Patience(recipe.broker.patience, metrics.redis_missed)
    client = connect(recipe.broker, url, patience=patience)
    blocking = connect(recipe.broker, url, blocking_seconds=CLAIM_SECONDS, patience=patience)
    keys, source, folder = Keys(recipe.run.name), Path(recipe.run.model), RunFolder.of(recipe.run)
    folder.make()
    fingerprint = Fingerprint.of(recipe)
    agree(client, keys, fingerprint)
    metrics.starting("model")
    trainer = load_trainer(LeadingTrainer, recipe, ranks)
    announce(client, keys, fingerprint, json.dumps(recipe.whole(), default=str))
    create_groups(client, keys)
    reached("learner.announced")
    fence = Fence(client, keys, patience)
    ledger, evaluations = Ledger(client, keys, "train", fence), Ledger(client, keys, "eval", fence)
    fence.take_over()
    metrics.starting("task card")
    card = wait_for_task(client, keys)
    recipe.objective.require(card.components)
    metrics.starting("none")
    settings = recipe.learner
    flow = Flow(
        recipe.capacity,
        settings.groups_per_step,
        recipe.run.steps * settings.groups_per_step,
        card.train,
        recipe.run.seed,
        card.parts,
        settings.course,
    )
    policy = writer(recipe, client, keys, fence)
    tally = StepTally(folder.steps, recipe.run.steps, metrics)
    problems = min(settings.eval_problems, card.held_out)
    evaluator = Evaluator(evaluations, problems, recipe.run.seed, tally.evaluation, labels_of(card))
    return Learner(
        recipe,
        client,
        keys,
        RolloutStream(client, blocking, keys, patience=patience),
        Dispatch(ledger, policy, flow),
        policy,
        trainer,
        evaluator,
        tally,
        metrics,
        partial(fill_version, trainer.model, source),
        AuditLog.of(recipe.broker, url, keys, metrics.audit_lost.inc),
    )


T = TypeVar("T", bound=Trainer)


def load_trainer(kind: type[T], recipe: ProcessRecipe, ranks: Ranks) -> T:
    """The model, spread over the ranks where there are several, and the frozen one that a KL is taken to."""
    source, settings = Path(recipe.run.model), recipe.learner

    def loaded(folder: Path, **changed: Any) -> PolicyModel:
        model = PolicyModel.load(folder, recipe, settings.model_copy(update=changed))
        return model if ranks.mesh is None else model.shard(ranks.mesh)

    model, reference = loaded(source), recipe.objective.reference
    scorer: Scorer | None = None
    if recipe.objective.needs_reference:
        base_will_do = model.lora and reference is None
        scorer = model.reference() if base_will_do else loaded(Path(reference or source), lora_rank=0).frozen()
    return kind(model, recipe, scorer, ranks)


def finish(recipe: ProcessRecipe, metrics: LearnerMetrics, ranks: Ranks) -> bool:
    """Run to the end; False if Redis has lost something, and the run is to be taken up again from its checkpoint."""
    learner = build(recipe, metrics, ranks)
    try:
        outcome = learner.run()
    except Behind as loss:
        structlog.get_logger("learner").warning(
            "the run is taken up again from its newest checkpoint", because=str(loss)
        )
        metrics.ready_when(lambda: False)
        dismiss(ranks, for_good=False)
        learner.close()
        del learner
        gc.collect()  # a learner holds itself in cycles: its weights must be gone before the next one loads its own
        torch.cuda.empty_cache()
        return False
    trainer = learner.trainer
    write_final(RunFolder.of(recipe.run).model, Path(recipe.run.model), trainer)
    dismiss(ranks, for_good=True)
    reached("learner.ended")
    learner.client.set(learner.keys.finished, outcome)
    return True


def assist(recipe: ProcessRecipe, ranks: Ranks) -> None:
    """A follower's life: load the model, do as rank 0 does, and again where it begins anew."""
    while not follow(load_trainer(Trainer, recipe, ranks)):
        gc.collect()
        torch.cuda.empty_cache()


def require_redis(recipe: ProcessRecipe) -> None:
    """Raises `Refused` where Redis cannot carry this run. Who begins does not wait for one that is not there."""
    with connect(recipe.broker, redis_url(recipe.broker)) as client:
        require(client)
        require_room(recipe, client.info("memory"), address(client))


def compared(recipe: ProcessRecipe) -> dict[str, float]:
    """What alerts and dashboards compare figures with."""
    of = recipe.learner
    return {
        "steps": recipe.run.steps,
        "max_staleness": recipe.run.max_staleness,
        "pipeline_depth": of.pipeline_depth,
        "groups_per_step": of.groups_per_step,
        "capacity": recipe.capacity,
        "group_size": recipe.sampling.group_size,
        "max_tokens": recipe.sampling.max_tokens,
        "guard_min_ess": of.guard_min_ess,
    }


def lead(recipe: ProcessRecipe, ranks: Ranks) -> None:
    """The learner's life."""
    metrics = LearnerMetrics(stall_seconds=recipe.monitoring.stall_seconds)
    metrics.observe_settings(compared(recipe))
    with watched(metrics, recipe.monitoring, recipe.monitoring.learner_port):
        require_redis(recipe)
        while not finish(recipe, metrics, ranks):
            pass


@guarded
def main() -> None:
    """Entry point; under torchrun, of every rank."""
    setup("learner")
    recipe = process_recipe(ProcessRecipe, "consumer", "the learner of a run")
    if recipe.learner.threads:
        torch.set_num_threads(recipe.learner.threads)
    device = device_of(recipe.learner.device)
    if device == "cpu":
        keep_what_is_freed()
    ranks = Ranks.join(device)
    must_agree(recipe, ranks)
    if ranks.world > 1:
        die_with_parent()
    pass_over_what_is_loaded()
    if ranks.leads:
        lead(recipe, ranks)
    else:
        assist(recipe, ranks)
    ranks.leave()


if __name__ == "__main__":
    main()
