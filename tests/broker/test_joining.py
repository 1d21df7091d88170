"""Nobody joins a run that is not theirs: what differs is named in one line; what agrees is never in the way."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from broker.card import PartCard, TaskCard
from broker.errors import Refused
from broker.joining import Fingerprint, announce, join, read_task, register_task, wait_for_task
from broker.keys import Keys
from broker.settings import RecipeBase

CARD = TaskCard("addition", 75, 2, "a" * 64, (PartCard("addition", 75),), ((0, "1 digit"),), (0, 0), ("correct",))
WHOLE = Fingerprint("model", "tokenizer", 4, 0.7, 8, False)


def fingerprint(**changes: Any) -> Fingerprint:
    return dataclasses.replace(WHOLE, **changes)


def refusal(client: redis_library.Redis, keys: Keys, mine: Fingerprint) -> str:
    with pytest.raises(Refused) as caught:
        join(client, keys, mine)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the fingerprint --------------------------------------------------------------------------------------------------


def test_a_generator_that_agrees_joins(redis: redis_library.Redis, keys: Keys) -> None:
    announce(redis, keys, fingerprint(), "{}")
    join(redis, keys, fingerprint())
    assert redis.get(keys.recipe) == b"{}"


@pytest.mark.parametrize(
    ("field", "theirs", "mine"),
    [
        ("model", "model", "another"),
        ("tokenizer", "tokenizer", "another"),
        ("group_size", 4, 8),
        ("temperature", 0.7, 1.0),
        ("max_tokens", 8, 16),
        ("deterministic", False, True),
    ],
)
def test_a_generator_that_differs_is_told_in_what(
    redis: redis_library.Redis, keys: Keys, field: str, theirs: Any, mine: Any
) -> None:
    announce(redis, keys, fingerprint(), "{}")
    line = refusal(redis, keys, fingerprint(**{field: mine}))
    assert line.startswith(f"{field} differs: here {mine!r}, the learner has {theirs!r}: both sides must use the same")


def test_an_older_side_that_does_not_know_a_field_differs_in_it(redis: redis_library.Redis, keys: Keys) -> None:
    redis.set(keys.fingerprint, '{"model": "model", "tokenizer": "tokenizer"}')
    assert "group_size differs: here 4, the learner has None" in refusal(redis, keys, fingerprint())


@pytest.fixture
def recipe(tmp_path: Path) -> RecipeBase:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    (tmp_path / "tokenizer.json").write_text("{}")
    run = {"name": "first", "model": str(tmp_path), "steps": 1}
    return RecipeBase.model_validate({"run": run, "sampling": {"max_tokens": 8, "group_size": 4, "temperature": 0.7}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sampling", "group_size", 2),
        ("sampling", "temperature", 0.5),
        ("sampling", "max_tokens", 9),
        ("run", "deterministic", True),
    ],
)
def test_every_setting_that_both_sides_compute_with_counts(
    recipe: RecipeBase, section: str, key: str, value: Any
) -> None:
    document = recipe.model_dump()
    document[section][key] = value
    document["broker"].pop("password", None)
    assert Fingerprint.of(RecipeBase.model_validate(document)) != Fingerprint.of(recipe)


@pytest.mark.parametrize(
    ("file", "content", "counts"),
    [
        ("config.json", '{"hidden_size": 128}', True),
        ("tokenizer.json", "{ }", True),
        ("chat_template.jinja", "", True),
        ("config.json", '{"transformers_version": "5.0", "dtype": "bfloat16",   "hidden_size": 64}', False),
        ("model.safetensors", "weights come from the PolicyStore", False),
    ],
)
def test_the_network_and_the_tokenizer_count_and_what_a_library_notes_does_not(
    recipe: RecipeBase, file: str, content: str, counts: bool
) -> None:
    before = Fingerprint.of(recipe)
    (Path(recipe.run.model) / file).write_text(content)
    assert (Fingerprint.of(recipe) != before) == counts


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ('{"max_position_embeddings": 519}', 519),
        ('{"n_positions": 519}', 519),
        ('{"text_config": {"max_position_embeddings": 519}, "max_position_embeddings": 9999}', 519),
        ('{"max_position_embeddings": 520}', None),
        ("{}", None),
    ],
)
def test_sequences_that_the_network_cannot_place_are_refused(
    recipe: RecipeBase, config: str, limit: int | None
) -> None:
    """512 tokens of prompt and 8 of completion."""
    (Path(recipe.run.model) / "config.json").write_text(config)
    if limit is None:
        Fingerprint.of(recipe)
        return
    with pytest.raises(Refused, match=f"sequences of 520 tokens exceed the {limit} positions .* lower sampling"):
        Fingerprint.of(recipe)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_configuration_that_cannot_be_read_is_refused(recipe: RecipeBase, content: str) -> None:
    (Path(recipe.run.model) / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(Refused, match=r"cannot read .*config\.json"):
        Fingerprint.of(recipe)


def test_a_learner_comes_back_to_its_own_run_and_to_no_other(redis: redis_library.Redis, keys: Keys) -> None:
    announce(redis, keys, fingerprint(), "first")
    announce(redis, keys, fingerprint(), "second")
    with pytest.raises(Refused, match=r"group_size differs: here 2, the run in Redis has 4: .* or another run\.name"):
        announce(redis, keys, fingerprint(group_size=2), "third")
    assert redis.get(keys.recipe) == b"second", "one that is refused leaves everything as it was"
    join(redis, keys, fingerprint())


def test_runs_on_one_server_do_not_meet(redis: redis_library.Redis) -> None:
    announce(redis, Keys("a"), fingerprint(), "{}")
    announce(redis, Keys("b"), fingerprint(group_size=2), "{}")
    join(redis, Keys("a"), fingerprint())


def test_an_early_generator_waits_for_the_learner(redis: redis_library.Redis, keys: Keys) -> None:
    joined = threading.Event()

    def arrive() -> None:
        join(redis, keys, fingerprint())
        joined.set()

    thread = threading.Thread(target=arrive)
    thread.start()
    assert not joined.is_set()
    announce(redis, keys, fingerprint(), "{}")
    thread.join()
    assert joined.is_set()


def test_a_learner_that_never_comes_is_missed_by_name(redis: redis_library.Redis, keys: Keys) -> None:
    with pytest.raises(Refused, match=f"no learner has announced the run {keys.run} for 0 s: see the other side's log"):
        join(redis, keys, fingerprint(), seconds=0.0)


# -- the task ---------------------------------------------------------------------------------------------------------


def test_the_first_generator_registers_the_task_and_the_learner_reads_it(
    redis: redis_library.Redis, keys: Keys
) -> None:
    assert read_task(redis, keys) is None
    register_task(redis, keys, CARD)
    assert read_task(redis, keys) == CARD
    assert wait_for_task(redis, keys) == CARD
    register_task(redis, keys, CARD)


@pytest.mark.parametrize(
    "change", [{"content_hash": "b" * 64}, {"train": 74}, {"held_out": 24}, {"name": "gsm8k"}, {"components": ()}]
)
def test_a_generator_with_other_problems_is_refused_and_changes_nothing(
    redis: redis_library.Redis, keys: Keys, change: dict[str, Any]
) -> None:
    register_task(redis, keys, CARD)
    with pytest.raises(Refused, match=r"is not the one this run was registered with: use the same \[task\] section"):
        register_task(redis, keys, dataclasses.replace(CARD, **change))
    assert read_task(redis, keys) == CARD


def test_a_task_that_nobody_registers_is_missed(redis: redis_library.Redis, keys: Keys) -> None:
    with pytest.raises(Refused, match="no generator has registered a task for 0 s"):
        wait_for_task(redis, keys, seconds=0.0)
