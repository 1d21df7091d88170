"""Packing, for groups, budgets and layouts that hypothesis draws: what each token is, and what its predictor sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.schema import Rollout, RolloutGroup
from consumer.pack import Layout, MicroBatch, assign, pack
from consumer.segments import ALONE, Segments
from consumer.sheet import Sheet
from tests.consumer.groups import random_groups, rollout

BATCHES = st.builds(random_groups, st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6), st.integers(3, 20))
LAYOUTS: st.SearchStrategy[Layout] = st.sampled_from(["auto", "packed", "shared_prompt", "padded"])
BUDGETS, PADS = st.integers(1, 300), st.integers(0, 5)
for_many_batches = settings(max_examples=80, deadline=None, database=None, derandomize=True)


def packed(groups: Sequence[RolloutGroup], budget: int, layout: Layout = "auto", pad: int = 0) -> list[MicroBatch]:
    return pack(groups, Sheet.of(groups).starts.tolist(), budget, layout, pad)


class Token(NamedTuple):
    """One completion token of a micro-batch: where it came from, and its index there."""

    batch: MicroBatch
    group: RolloutGroup
    rollout: Rollout
    place: int
    at: int

    @property
    def row_and_query(self) -> tuple[int, int]:
        row, query = divmod(int(self.batch.predictor[self.at]), self.batch.input_ids.shape[1])
        return row, query


def tokens_of(batches: Sequence[MicroBatch], groups: Sequence[RolloutGroup]) -> Iterator[Token]:
    sheet = [(g, r, place) for g in groups for r in g.rollouts for place in range(len(r.tokens))]
    for batch in batches:
        for at, row in enumerate(batch.tokens.tolist()):
            group, source, place = sheet[row]
            yield Token(batch, group, source, place, at)


def visible_to(query: int, segments: Segments | None) -> list[int]:
    """Places of a row that a query sees, from the meaning of segments and not from what kernels are told."""
    if segments is None:
        return list(range(query + 1))
    ends = np.cumsum(segments.lengths)
    number = int(np.searchsorted(ends, query, side="right"))
    spans = [range(end - length, end) for end, length in zip(ends, segments.lengths, strict=True)]
    prompt = segments.prompts[number]
    return [*([] if prompt == ALONE else spans[prompt]), *range(spans[number].start, query + 1)]


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS, PADS)
def test_each_completion_token_is_there_once_at_its_place_in_the_sheet(
    groups: list[RolloutGroup], budget: int, layout: Layout, pad: int
) -> None:
    batches = packed(groups, budget, layout, pad)
    for token in tokens_of(batches, groups):
        assert token.batch.targets[token.at] == token.rollout.tokens[token.place]
    seen = sorted(row for batch in batches for row in batch.tokens.tolist())
    assert seen == list(range(sum(one.completion_tokens for one in groups)))


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS, PADS)
def test_a_predictor_sees_the_prompt_and_its_own_completion_so_far_and_nothing_else(
    groups: list[RolloutGroup], budget: int, layout: Layout, pad: int
) -> None:
    for token in tokens_of(packed(groups, budget, layout, pad), groups):
        before = [*token.group.prompt.tolist(), *token.rollout.tokens[: token.place].tolist()]
        row, query = token.row_and_query
        ids, positions = token.batch.input_ids[row], token.batch.position_ids[row]
        seen = visible_to(query, token.batch.segments)
        assert ids[seen].tolist() == before
        assert positions[seen].tolist() == list(range(len(before))), "each at its own position"


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS)
def test_a_completion_stays_together_and_in_order(groups: list[RolloutGroup], budget: int, layout: Layout) -> None:
    """Whoever looks at ratios of whole sequences finds each in one micro-batch."""
    sequences = Sheet.of(groups).sequences
    for batch in packed(groups, budget, layout):
        for number in sequences[batch.tokens].unique().tolist():
            own = torch.nonzero(sequences == number)[:, 0]
            start = int(torch.nonzero(batch.tokens == own[0])[0, 0])
            assert torch.equal(batch.tokens[start : start + len(own)], own)


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS)
def test_a_micro_batch_keeps_to_its_budget_or_is_a_single_block(
    groups: list[RolloutGroup], budget: int, layout: Layout
) -> None:
    for batch in packed(groups, budget, layout):
        sequences = Sheet.of(groups).sequences[batch.tokens].unique()
        assert batch.padded_tokens <= budget or len(sequences) == 1
        assert batch.padded_tokens == batch.input_ids.shape[0] * batch.input_ids.shape[1]


@for_many_batches
@given(BATCHES, BUDGETS, LAYOUTS)
def test_a_packed_row_holds_its_segments_and_no_padding(
    groups: list[RolloutGroup], budget: int, layout: Layout
) -> None:
    for batch in packed(groups, budget, layout):
        if batch.segments is not None:
            assert batch.input_ids.shape == (1, sum(batch.segments.lengths))
    whole = sum(len(g.prompt) + len(r.tokens) for g in groups for r in g.rollouts)
    assert sum(batch.padded_tokens for batch in packed(groups, budget, "packed")) == whole


@for_many_batches
@given(BATCHES, BUDGETS)
def test_a_shared_prompt_is_computed_once_as_long_as_the_budget_has_room(
    groups: list[RolloutGroup], budget: int
) -> None:
    least = sum(len(g.prompt) + g.completion_tokens for g in groups)
    tokens = sum(batch.padded_tokens for batch in packed(groups, budget, "shared_prompt"))
    most = sum(batch.padded_tokens for batch in packed(groups, budget, "packed"))
    assert least == sum(batch.padded_tokens for batch in packed(groups, 10**6, "shared_prompt"))
    assert least <= tokens <= most


def made(prompt: int, completion: int, size: int) -> list[RolloutGroup]:
    answers = tuple(rollout([1] * completion, float(i)) for i in range(size))
    return [RolloutGroup("t0", "train", 0, np.ones(prompt, np.int32), answers)]


@pytest.mark.parametrize(
    ("prompt", "completion", "shared"), [(300, 10, True), (10, 10, True), (4, 2000, False), (2000, 4000, True)]
)
def test_the_automatic_layout_shares_prompts_where_that_saves_work(prompt: int, completion: int, shared: bool) -> None:
    (batch,) = packed(made(prompt, completion, 8), 10**6)
    assert batch.segments is not None
    assert (len(batch.segments.lengths) == 1 + 8) == shared
    assert (batch.padded_tokens == prompt + 8 * completion) == shared


def test_a_completion_longer_than_the_budget_still_travels_whole_and_alone() -> None:
    (batch,) = packed(made(3, 50, 2), 10**6, "shared_prompt")
    assert batch.padded_tokens == 3 + 2 * 50
    for layout in ("shared_prompt", "packed", "padded"):
        assert [one.padded_tokens for one in packed(made(3, 50, 2), 8, layout)] == [53, 53]


@pytest.mark.parametrize("layout", ["packed", "shared_prompt", "padded"])
def test_the_same_groups_make_the_same_micro_batches_to_the_byte(layout: Layout) -> None:
    def tensors(batch: MicroBatch) -> list[torch.Tensor]:
        values = [*vars(batch).values(), *(vars(batch.segments).values() if batch.segments else ())]
        return [v for v in values if isinstance(v, torch.Tensor)]

    ones, others = packed(random_groups(3), 60, layout), packed(random_groups(3), 60, layout)
    for one, other in zip(ones, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def test_rows_of_like_length_share_a_padded_micro_batch_so_little_is_padded() -> None:
    answers = tuple(rollout([1] * length, float(length)) for length in (40, 2, 41, 3, 39, 1))
    batches = packed([RolloutGroup("t0", "train", 0, np.ones(1, np.int32), answers)], 126, "padded")
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(3, 42), (3, 4)]


def test_packed_rows_are_as_few_as_may_be_and_about_as_long() -> None:
    lengths = [90, 60, 50, 40, 30, 20, 10]  # 300 tokens, 3 rows of 100 if they fit exactly
    answers = tuple(rollout([1] * (length - 1), float(length)) for length in lengths)
    groups = [RolloutGroup("t0", "train", 0, np.ones(1, np.int32), answers)]
    assert sorted(batch.padded_tokens for batch in packed(groups, 100, "packed")) == [100, 100, 100]
    roomy = [batch.padded_tokens for batch in packed(groups, 180, "packed")]
    assert roomy == [150, 150], "and not 180 and 120"


def test_everything_a_micro_batch_has_moves_with_it() -> None:
    batch = packed(random_groups(3), 10**6, "shared_prompt")[0].to(torch.device("meta"))
    assert batch.segments is not None
    for owner in (batch, batch.segments):
        for field in dataclasses.fields(owner):
            value = getattr(owner, field.name)
            assert not isinstance(value, torch.Tensor) or value.is_meta, field.name


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_the_micro_batches_by_cost_and_none_has_more_than_its_share_of_passes(world: int) -> None:
    batches = packed(random_groups(4, 6, 6), 70, "packed")
    ranks = assign(batches, world)
    assert len(ranks) == world
    assert sorted(index for rank in ranks for index in rank) == list(range(len(batches)))
    assert max(len(rank) for rank in ranks) == -(-len(batches) // world)
    costs = [sum(batches[i].cost for i in rank) for rank in ranks]
    assert max(costs) - min(costs) <= max(batch.cost for batch in batches)
    assert ranks == assign(batches, world)


def test_a_rank_with_little_to_do_is_not_given_more_passes_than_the_others() -> None:
    """Ranks that wait for each other at every pass would all make as many as it does."""
    answers = tuple(rollout([1] * length, float(length)) for length in (200, 5, 5, 5, 5, 5))
    batches = packed([RolloutGroup("t0", "train", 0, np.ones(1, np.int32), answers)], 6, "packed")
    assert sorted(len(rank) for rank in assign(batches, 2)) == [3, 3]
