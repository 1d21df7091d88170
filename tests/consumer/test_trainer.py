"""The optimizer step around the estimator: repeatable, restorable, proof against what is not finite, honest figures.

Loss and gradient themselves: test_estimator.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.settings import LearnerRecipe
from consumer.trainer import Trainer
from tests.consumer import oracle
from tests.consumer.groups import gpt2, llama, policy_model, random_groups, recipe, rollout

RATE = 0.01
STEPWISE = {"learning_rate": RATE, "max_grad_norm": 1.0}


def trainer(of: LearnerRecipe | None = None, seed: int = 0) -> Trainer:
    of = of or recipe(STEPWISE)
    return Trainer(policy_model(llama(seed), of), of)


def weights(of: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in of.model.parameters]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- repeatable and restorable ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_same_groups_on_the_same_weights_give_the_same_weights_to_the_bit(minibatches: int) -> None:
    of = recipe({**STEPWISE, "minibatches_per_batch": minibatches, "tokens_per_micro_batch": 50})
    one, other = trainer(of), trainer(of)
    before = weights(one)
    for step in range(3):
        assert one.train(random_groups(step), 3).loss == other.train(random_groups(step), 3).loss
        assert same(weights(one), weights(other))
    assert not same(before, weights(one))


def test_a_restored_trainer_takes_the_third_step_like_the_one_that_never_stopped(tmp_path: Path) -> None:
    """Through a file, as a checkpoint; moments, their step counts and the warm-up go on as if nothing had happened."""
    of = recipe({**STEPWISE, "warmup_steps": 5, "weight_decay": 0.1})
    steady = trainer(of)
    for step in range(2):
        steady.train(random_groups(step), 3)
    save_file(steady.state_dict(), tmp_path / "state.safetensors")
    restored = trainer(of, seed=99)
    restored.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert same(weights(steady), weights(restored))
    expected, found = steady.train(random_groups(2), 3), restored.train(random_groups(2), 3)
    assert same(weights(steady), weights(restored))
    assert (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)
    assert found.learning_rate == expected.learning_rate == pytest.approx(RATE * 3 / 5)
    assert steady.state_dict().keys() == restored.state_dict().keys()
    assert all(torch.equal(steady.state_dict()[k], v) for k, v in restored.state_dict().items())


def test_what_was_saved_is_a_copy_that_training_does_not_touch() -> None:
    of = trainer()
    of.train(random_groups(0), 3)
    saved, published = of.state_dict(), of.snapshot()
    kept = {name: tensor.clone() for name, tensor in {**saved, **published}.items()}
    of.train(random_groups(1), 3)
    assert all(torch.equal({**saved, **published}[name], tensor) for name, tensor in kept.items())


def test_the_state_of_another_model_is_not_taken() -> None:
    with pytest.raises(KeyError):
        trainer().load_state_dict(Trainer(policy_model(gpt2()), recipe()).state_dict())


# -- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_thrown_away_and_said_so(poison: float) -> None:
    hurt, healthy = trainer(), trainer()
    hurt.train(random_groups(0), 3)
    healthy.train(random_groups(0), 3)
    state = hurt.state_dict()
    hook = hurt.model.parameters[0].register_hook(lambda gradient: gradient * poison)
    stats = hurt.train(random_groups(1), 3)
    hook.remove()
    assert stats.skipped
    assert not math.isfinite(stats.grad_norm)
    assert all(torch.equal(state[name], tensor) for name, tensor in hurt.state_dict().items()), "nothing has moved"
    assert not hurt.train(random_groups(2), 3).skipped
    healthy.train(random_groups(2), 3)
    assert same(weights(hurt), weights(healthy)), "the bad step has left no trace, in the moments neither"


def test_a_bad_minibatch_costs_its_own_update_only() -> None:
    of = trainer(recipe({**STEPWISE, "minibatches_per_batch": 3}))
    gradients = iter([1.0, math.inf, 1.0])
    hook = of.model.parameters[0].register_hook(lambda gradient: gradient * next(gradients))
    stats = of.train(random_groups(0), 3)
    hook.remove()
    assert stats.skipped
    assert of.updates == 2


def test_a_behaviour_log_prob_beyond_all_measure_does_no_harm() -> None:
    """The ratio is held finite and truncated, so the wildest token weighs 2."""
    wild = rollout([3, 4], 1.0, logprobs=[-1e30, -80.0])
    of = trainer()
    stats = of.train([RolloutGroup("t0", "train", 0, np.array([1], np.int32), (wild, rollout([5, 6], 0.0)))], 3)
    assert not stats.skipped
    assert math.isfinite(stats.grad_norm)


# -- the optimizer ---------------------------------------------------------------------------------------------------


def test_warm_up_rises_linearly_and_counts_updates_that_were_made() -> None:
    of = trainer(recipe({"learning_rate": RATE, "warmup_steps": 4, "minibatches_per_batch": 2}))
    rates = [of.train(random_groups(step), 3).learning_rate for step in range(3)]
    assert rates == pytest.approx([RATE * 2 / 4, RATE * 4 / 4, RATE])


def test_the_first_update_of_adam_moves_every_weight_by_the_rate_against_its_gradient() -> None:
    """Kingma and Ba 2015: at the first step m̂/√v̂ is the gradient's sign, whatever clipping made of its size."""
    of = recipe({"learning_rate": RATE, "eps": 1e-20, "max_grad_norm": 1e-3})
    one = trainer(of)
    before, gradients = weights(one), list[Tensor]()
    hook = one.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.clone() for p in one.model.parameters if p.grad is not None)
    )
    stats = one.train(random_groups(0), 3)
    hook.remove()
    assert stats.grad_norm > 1e-3
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(1e-3, rel=1e-3), "it was clipped"
    for was, now, gradient in zip(before, weights(one), gradients, strict=True):
        moved = gradient.abs() > 1e-12
        assert torch.allclose((now - was)[moved], -RATE * gradient[moved].sign(), rtol=1e-3)


def test_a_batch_without_any_advantage_moves_nothing() -> None:
    equal = RolloutGroup("t0", "train", 0, np.array([1], np.int32), (rollout([3], 1.0), rollout([4, 5], 1.0)))
    of = trainer()
    before = weights(of)
    stats = of.train([equal], 3)
    assert same(before, weights(of))
    assert (stats.loss, stats.grad_norm) == (0.0, 0.0)


# -- what a step says of itself --------------------------------------------------------------------------------------


def test_the_figures_of_a_step_are_those_of_its_tokens() -> None:
    groups, of = random_groups(7), recipe()
    module = gpt2()
    nested = oracle.logprobs_of(module, groups)
    stats = Trainer(policy_model(module, of), of).train(groups, policy_version=5)
    logprobs = np.array([x for g in nested for r in g for x in r])
    behaviour = np.concatenate([r.behaviour_logprobs for g in groups for r in g.rollouts]).astype(np.float64)
    ages = 5 - np.concatenate([r.versions() for g in groups for r in g.rollouts])
    ratio = np.exp(logprobs - behaviour)
    assert stats.tokens == len(ratio) == sum(stats.staleness_histogram.values())
    assert stats.ratio_mean == pytest.approx(ratio.mean())
    assert stats.ratio_max == pytest.approx(ratio.max())
    assert stats.ess == pytest.approx(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum()))
    assert stats.kl == pytest.approx((ratio - 1 - np.log(ratio)).mean())
    assert stats.truncation_fraction == pytest.approx((ratio > 2).mean())
    assert stats.clip_fraction == 0.0, "with one minibatch the clip is inactive"
    assert stats.staleness_mean == pytest.approx(ages.mean())
    assert stats.staleness_max == ages.max() == 3
    assert stats.staleness_histogram == {age: int((ages == age).sum()) for age in (2, 3)}
    assert stats.padded_tokens > stats.tokens


def test_a_step_says_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = random_groups(7)
    tokens = sum(len(g.prompt) + len(r.tokens) for g in groups for r in g.rollouts)
    of = trainer(recipe({**STEPWISE, "layout": "padded", "tokens_per_micro_batch": 50}))
    weights = sum(p.numel() for p in of.model.parameters)
    stats = of.train(groups, 3)
    assert stats.padded_tokens > tokens, "what padding costs is not what the model asks for"
    assert stats.flops == 6 * weights * tokens, "its table is tied to the head"
    assert set(stats.phase_seconds) == {"pack", "forward_backward", "optimizer", "figures"}
    assert stats.train_seconds == pytest.approx(sum(stats.phase_seconds.values()))
    assert (stats.mfu, stats.peak_flops) == (None, None), "nobody knows what a CPU can do"
    of.model.peak_flops = 1e12  # as learner.peak_flops says
    known = of.train(groups, 3)
    assert known.peak_flops == 1e12
    assert known.mfu == pytest.approx(known.flops / known.train_seconds / 1e12)


def test_a_reference_and_a_look_back_are_forward_passes_more() -> None:
    groups, usual = random_groups(7), recipe(STEPWISE)
    of = recipe({**STEPWISE, "minibatches_per_batch": 2}, {"kl": "k3", "kl_coefficient": 0.1})
    model = policy_model(llama(0), of)
    stats = Trainer(model, of, policy_model(llama(1), of).frozen()).train(groups, 3)
    plain = Trainer(policy_model(llama(0), usual), usual).train(groups, 3)
    assert stats.flops == pytest.approx(plain.flops * 10 / 6)
