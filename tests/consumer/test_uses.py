"""What a step made of each rollout, against the plain arithmetic of its tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from consumer.objective.advantage import advantages
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer
from tests.consumer.groups import llama, policy_model, random_groups, recipe, rollout


def trained(of: LearnerRecipe, count: int = 3) -> Trainer:
    trainer = Trainer(policy_model(llama(), of), of)
    trainer.train(random_groups(1, count), 4)
    return trainer


def test_advantages_are_those_of_the_objective_for_the_same_rewards() -> None:
    of, groups = recipe(), random_groups(1)
    uses = trained(of).uses
    assert uses is not None
    for number, group in enumerate(groups):
        shares = uses.shares(number, group)
        rewards = np.array([r.reward for r in group.rollouts])
        expected = advantages(rewards, [len(rewards)], of.objective)
        assert [share.advantage for share in shares] == expected.tolist()
        assert [share.reward for share in shares] == rewards.tolist()
        assert [share.tokens for share in shares] == [len(r.tokens) for r in group.rollouts]


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize("layout", ["packed", "shared_prompt", "padded"])
def test_ratios_are_those_of_the_rollout_s_own_tokens(layout: str, minibatches: int) -> None:
    """At one update a batch π is the model as it was: the very numbers of a plain forward pass."""
    of, groups = recipe({"layout": layout, "minibatches_per_batch": minibatches}), random_groups(1)
    trainer = Trainer(policy_model(llama(), of), of)
    model, found = llama(), list[tuple[float, float, float]]()
    for group in groups:
        for made in group.rollouts:
            ids = torch.from_numpy(np.concatenate([group.prompt, made.tokens]).astype(np.int64))[None]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].double()
            logprobs = logits.log_softmax(-1).gather(-1, ids[0, len(group.prompt) :, None])[:, 0]
            ratio = (logprobs - torch.from_numpy(made.behaviour_logprobs).double()).exp()
            found.append((float(ratio.mean()), float(ratio.min()), float(ratio.max())))
    stats = trainer.train(groups, 4)
    assert trainer.uses is not None
    shares = [s for n, group in enumerate(groups) for s in trainer.uses.shares(n, group)]
    if minibatches == 1:
        told = [(s.ratio_mean, s.ratio_min, s.ratio_max) for s in shares]
        np.testing.assert_allclose(np.array(told, float), np.array(found), rtol=1e-4)
    assert max(s.ratio_max or 0 for s in shares) == pytest.approx(stats.ratio_max)
    tokens = sum(s.tokens for s in shares)
    for name, total in (("ratio_mean", stats.ratio_mean), ("truncated", stats.truncation_fraction)):
        assert sum(getattr(s, name) * s.tokens for s in shares) / tokens == pytest.approx(total)
    assert stats.truncation_fraction > 0, "or nothing is shown"


def test_the_same_figures_whatever_the_others_in_the_batch_are() -> None:
    of, groups = recipe(), random_groups(1)
    uses = trained(of).uses
    alone = Trainer(policy_model(llama(), of), of)
    alone.train(groups[2:], 4)
    assert uses is not None
    assert alone.uses is not None
    for one, other in zip(uses.shares(2, groups[2]), alone.uses.shares(0, groups[2]), strict=True):
        assert one.advantage == other.advantage
        assert one.ratio_mean == pytest.approx(other.ratio_mean, rel=1e-5)


def test_what_is_not_a_number_is_none_and_its_neighbours_are_untouched() -> None:
    """A log-prob that no generator of ours would publish."""
    of, (group, *rest) = recipe(), random_groups(1)
    poisoned = replace(group, rollouts=(rollout((1, 2), 0.5, logprobs=[math.nan, -1.0]), *group.rollouts[1:]))
    trainer = Trainer(policy_model(llama(), of), of)
    trainer.train([poisoned, *rest], 4)
    assert trainer.uses is not None
    first, second, *_ = trainer.uses.shares(0, poisoned)
    assert first.ratio_mean is None
    assert first.advantage is not None
    assert second.ratio_mean is not None


def test_nobody_asks_nothing_is_computed() -> None:
    of = LearnerRecipe.model_validate({**recipe().model_dump(), "broker": {"audit_entries": 0}})
    assert trained(of).uses is None
