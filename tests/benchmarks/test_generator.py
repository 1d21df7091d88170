"""The generator leg: what it asks for, what it counts, and that it works; never how fast anything is."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import redis as redis_library

from benchmarks import generator_load
from benchmarks.generator import measure
from benchmarks.generator_desk import Desk
from benchmarks.generator_load import Asked, load
from broker.embedded import EmbeddedServer
from broker.schema import Rollout, RolloutGroup, Ticket, VersionSpan, tombstone
from broker.tickets import TicketStream
from deploy.prepare import prepare
from producer.__main__ import ProcessRecipe

QUICK = load(cuda=False, quick=True)


@pytest.fixture(scope="module")
def recipe(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> ProcessRecipe:
    folder = tmp_path_factory.mktemp("bench")
    model = prepare("random:llama-tiny", folder / "models")
    return QUICK.recipe("bench", model, folder / "runs", redis_server.url, cuda=False)


@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_no_two_rounds_share_a_seed_or_a_ticket(cuda: bool, quick: bool) -> None:
    of = load(cuda=cuda, quick=quick)
    rounds = [-1, 0, *range(of.rounds), 100, 200, 1001, 2100, 2401, 3000, 3400]
    most = max(of.engines) * of.groups
    tickets = [ticket for number in set(rounds) for ticket in of.tickets(number, most)]
    assert len({ticket.seed for ticket in tickets}) == len(tickets)
    assert len({ticket.ticket_id for ticket in tickets}) == len(tickets)
    assert all(0 <= ticket.seed * of.group_size < 2**63 for ticket in tickets)


def test_every_ticket_has_a_prompt_that_fits(recipe: ProcessRecipe) -> None:
    asked = Asked.of(recipe)
    prompts = asked.prompts(QUICK.tickets(0, 500))
    assert all(0 < len(prompt) <= recipe.sampling.max_prompt_tokens for prompt in prompts)
    assert len({prompt.tobytes() for prompt in prompts}) > 100


def group(ticket: Ticket, tokens: int, generator: str) -> RolloutGroup:
    ids, logprobs = np.arange(1, tokens + 1, dtype=np.int32), np.full(tokens, -0.5, np.float32)
    made = Rollout(ids, logprobs, (VersionSpan(0, 0, tokens),), 1.0, {"correct": 1.0})
    return RolloutGroup(ticket.ticket_id, "train", ticket.problem, ids, (made, made), generator)


def test_the_desk_counts_what_was_published_and_when(
    redis: redis_library.Redis, blocking: redis_library.Redis, recipe: ProcessRecipe
) -> None:
    desk, tickets = Desk(recipe, redis), QUICK.tickets(0, 3)
    stream = TicketStream(redis, blocking, desk.keys, "one", 60.0, 3)
    desk.issue(tickets)
    claims = stream.claim(3, block_seconds=5.0)
    assert [claim.ticket for claim in claims] == tickets
    for number, claim in enumerate(claims):
        stream.publish(claim, group(claim.ticket, 10 + number, f"g{number % 2}"))
    assert desk.published == 3
    arrived = desk.collect()
    assert arrived.tokens == 2 * (10 + 11 + 12)
    assert arrived.generators == {"g0", "g1"}
    assert arrived.ended >= claims[-1].issued_at
    assert desk.published == 0
    assert desk.policy.newest() == 0


def test_a_group_that_failed_spoils_the_round(
    redis: redis_library.Redis, blocking: redis_library.Redis, recipe: ProcessRecipe
) -> None:
    desk = Desk(recipe, redis)
    stream = TicketStream(redis, blocking, desk.keys, "one", 60.0, 3)
    desk.issue(QUICK.tickets(0, 1))
    [claim] = stream.claim(1, block_seconds=5.0)
    stream.publish(claim, tombstone(claim.ticket, "no luck"))
    with pytest.raises(AssertionError, match="no luck"):
        desk.collect()


def test_the_model_of_a_gpu_has_a_word_for_every_token(
    tmp_path: Path, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 3}
    monkeypatch.setattr(generator_load, "SHAPE", generator_load.SHAPE | small)
    model = generator_load.model(cuda=True, quick=False, folder=tmp_path)
    of = load(cuda=True, quick=False)
    asked = Asked.of(of.recipe("bench", model, tmp_path / "runs", redis_server.url, cuda=True))
    some = np.arange(generator_load.VOCABULARY - 100, generator_load.VOCABULARY, dtype=np.int32)
    assert asked.tokens.decode(some) == "".join(f"word{i}" for i in some)
    assert asked.tokens.shown(asked.prompts(of.tickets(0, 1))[0]).startswith("<|im_start|>user\nWhat is")


@pytest.mark.engine
def test_one_engine_does_it_both_ways_and_takes_up_weights() -> None:
    leg = measure(argparse.Namespace(quick=True, parts=["bare", "refreshes"]))
    counts = {finding.what: len(finding.values) for finding in leg.findings}
    assert counts == {
        "tokens/s: Generator, of bare AsyncLLM on the same engine": QUICK.rounds,
        "a refresh: nothing is sampled": 2 * QUICK.refresh_rounds,
        "the same and the steps before it": 2 * QUICK.refresh_rounds,
        "the same without them, of the time on the wall": QUICK.refresh_rounds,
        "tokens/s: with refreshes, of without": QUICK.refresh_rounds,
    }
    assert all(value > 0 for finding in leg.findings for value in finding.values)
    assert "llama-tiny" in leg.markdown()
