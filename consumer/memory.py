"""How much of a run can be in Redis at once, in bytes, from its recipe alone: an upper bound, known before it starts.

Invariant: every term is what the protocol lets exist at the same moment, at the largest that the schema lets it be. The
commonest way to lose such a run is a server that fills up after hours, so one that could is refused at the start.
Refuses to know Redis: how full a server is, and what it may use, is handed in.

Version spans of a train completion are bounded by the staleness: rule W keeps the learner from passing `max_staleness`
versions while a ticket is out, so its tokens come from at most so many versions, the first, and one that is being
published. Nobody waits for an evaluation, whose tokens may each be of a version of their own.
"""

from __future__ import annotations

from typing import Any

from broker.errors import Refused
from broker.ledger import DEAD_LETTER_BYTES, DEAD_LETTER_REASON, DEAD_LETTERS
from broker.schema import MAX_COMPONENTS, MAX_NAME_BYTES
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


def most(recipe: LearnerRecipe) -> int:
    """Bytes that the run can hold in Redis, at most."""
    train = group_bytes(recipe, recipe.run.max_staleness + 2)
    evaluation = group_bytes(recipe, recipe.sampling.max_tokens)
    groups, evaluations = unsettled_groups(recipe), evaluation_groups(recipe)
    kept = DEAD_LETTERS * _entry(DEAD_LETTER) + audit_bytes(recipe)
    entries = groups * _entry(train) + evaluations * _entry(evaluation) + kept
    buffers = min(REPLY, groups) * train + min(REPLY, evaluations) * evaluation
    return BASE + int(ALLOCATOR * (entries + buffers))


def _entry(size: int) -> int:
    return max(NODE, size) + PLACE


def require_room(recipe: LearnerRecipe, info: dict[str, Any], where: str) -> None:
    """Raises `Refused` where Redis may use less (its INFO) than the run can fill."""
    needed, allowed = most(recipe), int(info.get("maxmemory", 0))
    if 0 < allowed < needed:
        raise Refused(
            f"Redis at {where} may use {allowed / 1e6:,.1f} MB (maxmemory), this run can fill {needed / 1e6:,.1f} MB",
            "raise maxmemory, or lower learner.checkpoint_every, learner.groups_per_step, sampling.max_tokens or "
            "broker.audit_entries",
        )
