"""Packing, for groups, budgets and layouts that hypothesis draws: what each token is, and what its predictor sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.schema import RolloutGroup
from consumer.pack import MicroBatch, completion_tokens, pack
from tests.consumer import oracle
from tests.consumer.groups import random_groups, rollout

Layout = Literal["auto", "padded", "shared_prompt"]
BATCHES = st.builds(random_groups, st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6), st.integers(3, 20))
LAYOUTS: st.SearchStrategy[Layout] = st.sampled_from(["auto", "padded", "shared_prompt"])
BUDGETS, PADS = st.integers(1, 300), st.integers(0, 5)
for_many_batches = settings(max_examples=80, deadline=None, database=None, derandomize=True)


class Token(NamedTuple):
    """One completion token of a batch of micro-batches: where it came from, and its index in the micro-batch."""

    batch: MicroBatch
    group: int
    rollout: int
    place: int
    at: int

    @property
    def row_and_query(self) -> tuple[int, int]:
        row, query = divmod(int(self.batch.predictor[self.at]), self.batch.input_ids.shape[1])
        return row, query


def tokens_of(packed: list[MicroBatch]) -> Iterator[Token]:
    for batch in packed:
        for index, (g, i, t) in enumerate(batch.order.tolist()):
            yield Token(batch, g, i, t, index)


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS, PADS)
def test_each_completion_token_is_there_once_with_all_that_belongs_to_it(
    groups: list[RolloutGroup], budget: int, layout: Layout, pad: int
) -> None:
    seen = []
    for token in tokens_of(pack(groups, budget, layout, pad)):
        batch, n, source = token.batch, token.at, groups[token.group].rollouts[token.rollout]
        seen.append((token.group, token.rollout, token.place))
        assert batch.targets[n] == source.tokens[token.place]
        assert batch.behaviour_logprobs[n] == source.behaviour_logprobs[token.place]
        assert batch.versions[n] == next(s.policy_version for s in source.spans if s.start <= token.place < s.end)
        gains = oracle.advantages([r.reward for r in groups[token.group].rollouts])
        assert float(batch.advantages[n]) == pytest.approx(gains[token.rollout], abs=1e-12)
    wanted = [
        (g, i, t) for g, one in enumerate(groups) for i, r in enumerate(one.rollouts) for t in range(len(r.tokens))
    ]
    assert sorted(seen) == wanted
    assert completion_tokens(groups) == len(wanted)


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS, PADS)
def test_a_predictor_sees_the_prompt_and_its_own_completion_so_far_and_nothing_else(
    groups: list[RolloutGroup], budget: int, layout: Layout, pad: int
) -> None:
    for token in tokens_of(pack(groups, budget, layout, pad)):
        source = groups[token.group]
        before = [*source.prompt.tolist(), *source.rollouts[token.rollout].tokens[: token.place].tolist()]
        row, query = token.row_and_query
        mask, ids, positions = token.batch.attention_mask, token.batch.input_ids[row], token.batch.position_ids[row]
        visible = torch.arange(len(ids)) <= query if mask is None else mask[row, 0, query]
        by_position = sorted(zip(positions[visible].tolist(), ids[visible].tolist(), strict=True))
        assert by_position == list(enumerate(before)), "every earlier token once, at its own position"
        assert positions[query] == len(before) - 1


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS)
def test_a_micro_batch_keeps_to_its_budget_or_is_a_single_row(
    groups: list[RolloutGroup], budget: int, layout: Layout
) -> None:
    for batch in pack(groups, budget, layout):
        assert batch.padded_tokens <= budget or len(batch.input_ids) == 1
        assert batch.padded_tokens == batch.input_ids.shape[0] * batch.input_ids.shape[1]


@for_many_batches
@given(BATCHES, BUDGETS, PADS)
def test_whoever_looks_at_nothing_useful_looks_at_himself(groups: list[RolloutGroup], budget: int, pad: int) -> None:
    """A query without any key would make the softmax, and through it the whole batch, a NaN."""
    for batch in pack(groups, budget, "shared_prompt", pad):
        if batch.attention_mask is not None:
            assert batch.attention_mask.diagonal(dim1=2, dim2=3).all()
            assert not batch.attention_mask.triu(1).any(), "nobody sees what comes later"


@for_many_batches
@given(BATCHES, BUDGETS)
def test_a_shared_prompt_is_computed_once_as_long_as_the_budget_has_room(
    groups: list[RolloutGroup], budget: int
) -> None:
    rows = sum(len(batch.input_ids) for batch in pack(groups, budget, "shared_prompt"))
    roomy = sum(len(batch.input_ids) for batch in pack(groups, 10**6, "shared_prompt"))
    padded = sum(len(batch.input_ids) for batch in pack(groups, budget, "padded"))
    assert len(groups) == roomy <= rows <= padded == sum(len(one.rollouts) for one in groups)


def made(prompt: int, completion: int, size: int) -> list[RolloutGroup]:
    answers = tuple(rollout([1] * completion, float(i)) for i in range(size))
    return [RolloutGroup("t0", "train", 0, np.ones(prompt, np.int32), answers)]


@pytest.mark.parametrize(
    ("prompt", "completion", "shared"), [(300, 10, True), (10, 10, True), (4, 2000, False), (2000, 4000, False)]
)
def test_the_automatic_layout_shares_prompts_where_that_saves_work(prompt: int, completion: int, shared: bool) -> None:
    """Long answers in one row would pay for attention between each other that the mask then throws away."""
    (batch,) = pack(made(prompt, completion, 8), 10**6)
    assert (len(batch.input_ids) == 1) == shared


def test_a_completion_longer_than_the_budget_still_travels_whole() -> None:
    (batch,) = pack(made(3, 50, 2)[:1], 10**6, "shared_prompt")
    assert batch.padded_tokens == 3 + 2 * 50
    alone = pack(made(3, 50, 2), 8, "shared_prompt")
    assert [one.padded_tokens for one in alone] == [53, 53]


def test_the_same_groups_make_the_same_micro_batches_to_the_byte() -> None:
    for one, other in zip(pack(random_groups(3), 60), pack(random_groups(3), 60), strict=True):
        for name, value in vars(one).items():
            assert value is None or torch.equal(value, getattr(other, name)), name


def test_rows_of_like_length_share_a_micro_batch_so_little_is_padded() -> None:
    answers = tuple(rollout([1] * length, float(length)) for length in (40, 2, 41, 3, 39, 1))
    batches = pack([RolloutGroup("t0", "train", 0, np.ones(1, np.int32), answers)], 126, "padded")
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(3, 42), (3, 4)]
