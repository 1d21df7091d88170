"""What both sides must agree on before the first token: the fingerprint of a run, and its TaskCard.

Invariant: a process whose fingerprint differs never joins; it ends with one line that names the field.
Refuses to know models and tasks: it compares what they say of themselves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from broker.card import TaskCard, decode_card, encode_card
from broker.documents import read_object, shown
from broker.errors import Malformed, Refused
from broker.fingerprint import max_positions, model_hash, tokenizer_hash
from broker.keys import Keys
from broker.settings import RecipeBase

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Fingerprint:
    """Model and tokenizer by their hashes, group size, temperature, limits."""

    model: str
    tokenizer: str
    group_size: int
    temperature: float
    max_tokens: int
    deterministic: bool

    @staticmethod
    def of(recipe: RecipeBase) -> Fingerprint:
        """Of a resolved recipe, whose `run.model` is a directory. Raises `Refused`, also if both do not fit."""
        folder, sampling = Path(recipe.run.model), recipe.sampling
        limit = max_positions(folder)
        if limit is not None and sampling.max_sequence > limit:
            cause = f"sequences of {sampling.max_sequence} tokens exceed the {limit} positions of the model in {folder}"
            raise Refused(cause, "lower sampling.max_prompt_tokens or sampling.max_tokens")
        return Fingerprint(
            model_hash(folder),
            tokenizer_hash(folder),
            sampling.group_size,
            sampling.temperature,
            sampling.max_tokens,
            recipe.run.deterministic,
        )


def agree(client: redis.Redis, keys: Keys, fingerprint: Fingerprint) -> None:
    """Raises `Refused` if a run exists under this name and is another one."""
    if (announced := client.get(keys.fingerprint)) is not None:
        _compare(announced, fingerprint, "the run in Redis")


def announce(client: redis.Redis, keys: Keys, fingerprint: Fingerprint, recipe: str) -> None:
    """The learner says what the run is; a run that exists under this name must be the same."""
    client.set(keys.fingerprint, json.dumps(asdict(fingerprint)), nx=True)
    agree(client, keys, fingerprint)
    client.set(keys.recipe, recipe)
    client.delete(keys.finished)  # of an earlier end: there is more to do now


def wait_for_recipe(client: redis.Redis, keys: Keys, seconds: float = 600.0) -> dict[str, Any]:
    """The run's whole recipe, once its learner has announced it. Raises `Refused`."""
    _wait(lambda: client.exists(keys.recipe), seconds, f"no learner has announced the run {keys.run}")
    raw: Any = client.get(keys.recipe)
    try:
        return read_object(raw)
    except Malformed as error:
        cause = f"the recipe of run {keys.run} in Redis cannot be read ({error})"
        raise Refused(cause, "use another run.name") from None


def join(client: redis.Redis, keys: Keys, fingerprint: Fingerprint, seconds: float = 600.0) -> None:
    """A generator waits until the learner has announced the run, and refuses to join another one."""
    _wait(lambda: client.exists(keys.fingerprint), seconds, f"no learner has announced the run {keys.run}")
    _compare(client.get(keys.fingerprint), fingerprint, "the learner")


def register_task(client: redis.Redis, keys: Keys, card: TaskCard) -> None:
    """The first generator registers the task; a later one must hold the same problems."""
    document = encode_card(card)
    if not client.set(keys.task_card, document, nx=True) and read_task(client, keys) != card:
        raise Refused(
            f"this generator's task {card.name} ({card.content_hash[:12]}) is not the one this run was registered with",
            "use the same [task] section and data on every generator",
        )


def read_task(client: redis.Redis, keys: Keys) -> TaskCard | None:
    """The registered task, or None. Raises `Refused`."""
    raw: Any = client.get(keys.task_card)
    if raw is None:
        return None
    try:
        return decode_card(raw)
    except Malformed as error:
        raise Refused(
            f"the task that was registered for run {keys.run} cannot be read ({error})",
            "use the same version of Headrace everywhere, or another run.name",
        ) from None


def wait_for_task(client: redis.Redis, keys: Keys, seconds: float = 600.0) -> TaskCard:
    """The TaskCard, once a generator has registered it."""
    _wait(lambda: client.exists(keys.task_card), seconds, "no generator has registered a task")
    card = read_task(client, keys)
    assert card is not None
    return card


def alive(until: Mapping[bytes, bytes], now: float) -> int:
    """How many generators have said that they live beyond `now`; what is no time counts as nobody."""
    return sum(_time(value) > now for value in until.values())


def _time(raw: bytes) -> float:
    try:
        return float(raw)
    except ValueError:
        return -math.inf


def _wait(ready: Callable[[], object], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise Refused(f"{otherwise} for {seconds:.0f} s", "see the other side's log")
        time.sleep(POLL_SECONDS)


def _compare(raw: Any, mine: Fingerprint, whose: str) -> None:
    try:
        theirs = read_object(raw)
    except Malformed as error:
        raise Refused(f"what {whose} announced cannot be read ({error})", "use another run.name") from None
    for name, value in asdict(mine).items():
        if theirs.get(name) != value:
            raise Refused(
                f"{name} differs: here {value!r}, {whose} has {shown(theirs.get(name))}",
                "both sides must use the same model directory and [sampling] section, or another run.name",
            )
