"""How much of a run can be in Redis at once, in bytes, from its recipe alone: an upper bound, known before it starts.

Invariant: every term is what the protocol lets exist at the same moment, at the largest that the schema lets it be. The
commonest way to lose such a run is a server that fills up after hours, so one that could is refused at the start.
Refuses to know Redis: how full a server is, and what it may use, is handed in.

Version spans of a train completion are bounded by the staleness: rule W keeps the learner from passing `max_staleness`
versions while a ticket is out, so its tokens come from at most so many versions, the first, and one that is being
published. Nobody waits for an evaluation, whose tokens may each be of a version of their own.

With policy.backend = "redis" versions of the weights are in there as well: the largest part by far, whose size is known
from the model's files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from broker.errors import Refused
from broker.ledger import DEAD_LETTER_BYTES, DEAD_LETTER_REASON, DEAD_LETTERS
from broker.schema import MAX_COMPONENTS, MAX_NAME_BYTES
from broker.shipper import CHUNK_BYTES, DELTAS_SHARE
from consumer.evaluation import AT_ONCE
from consumer.settings import LearnerRecipe

TOKEN = 4 + 4  # its id and its log-prob
SPAN = 1 + 5 + 5 + 5  # msgpack: a list of three integers
COMPONENT = 2 + MAX_NAME_BYTES + 9
ROLLOUT = 64 + MAX_COMPONENTS * COMPONENT  # headers, reward, flag
GROUP = 1024  # ids, names and headers; 256 characters of them are the generator's name
NODE = 4096  # of a stream: small entries share one, and whichever of them is left keeps all of it
PLACE = 512  # an entry's in index and pending list, its ticket's in hash and journal
DEAD_LETTER = DEAD_LETTER_BYTES + 4 * DEAD_LETTER_REASON + PLACE  # up to four bytes a character
NOTE = 64 + 64  # beside a note in the audit log: its ticket's id and the names of its fields
ALLOCATOR = 1.25  # jemalloc has four sizes for each doubling, so a block is up to a quarter larger than what is in it
BASE = 8 << 20  # an empty server, clients, scripts, recipe, task card, leases
IN_FLIGHT = 32 * CHUNK_BYTES  # of weights, in the buffers of connections
REPLY = 64 + 4  # groups in the buffers of connections: a reply to the learner, and some that are being sent


def unsettled_groups(recipe: LearnerRecipe) -> int:
    """Train groups without a final verdict, at most: capacity + c·B, c being the steps that may lack a checkpoint.

    Two checkpoints' worth where the disk is full (durability), the collapse guard's hesitation, and, since a checkpoint
    follows a publication, the steps up to one.
    """
    settings = recipe.learner
    steps = settings.most_unsaved_steps + settings.publish_every - 1
    return recipe.capacity + steps * settings.groups_per_step


def evaluation_groups(recipe: LearnerRecipe) -> int:
    """Evaluation groups: so many evaluations at once, and the last one."""
    return (AT_ONCE + 1) * recipe.learner.eval_problems


def group_bytes(recipe: LearnerRecipe, spans: int) -> int:
    """The largest group, as it is published, whose completions have up to `spans` version spans each."""
    sampling = recipe.sampling
    rollout = ROLLOUT + sampling.max_tokens * TOKEN + min(spans, sampling.max_tokens) * SPAN
    return GROUP + sampling.max_prompt_tokens * 4 + sampling.group_size * rollout


def audit_bytes(recipe: LearnerRecipe) -> int:
    """The audit log. Redis trims whole nodes of a stream, so a node of small notes stays that need not."""
    of = recipe.broker
    return (of.audit_entries + 1) * _entry(of.audit_bytes + NOTE) if of.audit_entries else 0


def versions(recipe: LearnerRecipe) -> int:
    """Policy versions in Redis, at most: 0 where they travel through a directory.

    The newest, as many because somebody leases them, one that is being shipped; and in a deterministic run those that
    the newest checkpoint's open tickets name, all since then, and those of evaluations.
    """
    if recipe.policy.backend != "redis":
        return 0
    named = 0
    if recipe.run.deterministic:
        since = math.ceil(recipe.learner.most_unsaved_steps / recipe.learner.publish_every) + 1
        named = recipe.run.max_staleness + 1 + since + AT_ONCE + 1
    return 2 * recipe.policy.keep + 1 + named


def version_bytes(recipe: LearnerRecipe) -> int:
    """One policy version of the model in the directory `run.model`, at most; 0 where there is none (yet)."""
    learner, folder = recipe.learner, Path(recipe.run.model)
    rank = learner.lora_rank if learner.lora_publish == "adapter" else 0
    weights = sorted(folder.glob("*.safetensors"))
    numbers = sum(_numbers(file, rank) for file in weights)
    others = sum(path.stat().st_size for path in folder.glob("*") if path.is_file() and path not in weights)
    return numbers * (4 if recipe.policy.dtype == "float32" else 2) + others


def _numbers(file: Path, rank: int) -> int:
    """In a file of weights; or in adapters of `rank` beside each of its matrices, if that is not 0."""
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    except (SafetensorError, OSError):  # whoever loads it says what is wrong with it
        return file.stat().st_size
    return sum(rank * sum(shape) if rank else math.prod(shape) for shape in shapes)


def most(recipe: LearnerRecipe, weights: int | None = None) -> int:
    """Bytes that the run can hold in Redis, at most; `weights` are those of one version, if not as `version_bytes`."""
    train = group_bytes(recipe, recipe.run.max_staleness + 2)
    evaluation = group_bytes(recipe, recipe.sampling.max_tokens)
    groups, evaluations = unsettled_groups(recipe), evaluation_groups(recipe)
    kept = DEAD_LETTERS * _entry(DEAD_LETTER) + audit_bytes(recipe)
    entries = groups * _entry(train) + evaluations * _entry(evaluation) + kept
    buffers = min(REPLY, groups) * train + min(REPLY, evaluations) * evaluation
    shipped = versions(recipe) * (version_bytes(recipe) if weights is None else weights)
    if recipe.policy.spacing > 1:  # beside each that is whole, the differences since
        shipped += int(DELTAS_SHARE * shipped)
    sent = IN_FLIGHT if shipped else 0
    return BASE + int(ALLOCATOR * (entries + buffers + shipped + sent))


def _entry(size: int) -> int:
    return max(NODE, size) + PLACE


def require_room(recipe: LearnerRecipe, info: dict[str, Any], where: str) -> None:
    """Raises `Refused` where Redis may use less (its INFO) than the run can fill."""
    needed, allowed = most(recipe), int(info.get("maxmemory", 0))
    if 0 < allowed < needed:
        raise Refused(
            f"Redis at {where} may use {allowed / 1e6:,.1f} MB (maxmemory), this run can fill {needed / 1e6:,.1f} MB",
            "raise maxmemory, or lower learner.checkpoint_every, learner.groups_per_step, sampling.max_tokens or "
            "broker.audit_entries" + (", or use policy.dtype = bfloat16" if versions(recipe) else ""),
        )
