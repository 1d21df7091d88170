"""AdamW with its moments in three kinds of numbers: each follows fp32, keeps what it says, survives the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from broker.errors import Refused
from consumer import checkpoint
from consumer.optimizer import make_optimizer, moments, set_rate, take_up, update
from consumer.trainer import Trainer
from tests.consumer.groups import llama, policy_model, random_groups, recipe

KINDS = ("adamw", "adamw_bf16", "adamw_8bit")
SHAPES = [(64, 128), (7,), (300, 32)]


def parameters() -> list[nn.Parameter]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def optimizer_of(kind: str, of: list[nn.Parameter]) -> torch.optim.Optimizer:
    pytest.importorskip("torchao") if kind == "adamw_8bit" else None
    return make_optimizer(of, recipe({"optimizer": kind, "learning_rate": 1e-2, "weight_decay": 0.1}).learner)


def steps(optimizer: torch.optim.Optimizer, of: list[nn.Parameter], first: int, count: int) -> None:
    """Noisy gradients of ½|p|², the same for the same step."""
    for step in range(first, first + count):
        noise = torch.Generator().manual_seed(step)
        for parameter in of:
            parameter.grad = parameter.detach() + 0.3 * torch.randn(parameter.shape, generator=noise)
        update(optimizer)


def moved(kind: str, count: int = 40) -> Tensor:
    of = parameters()
    steps(optimizer_of(kind, of), of, 0, count)
    return torch.cat([p.detach().flatten() for p in of])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_rounded_moments_lead_where_exact_ones_do(kind: str) -> None:
    start = torch.cat([p.detach().flatten() for p in parameters()])
    exact, rounded = moved("adamw"), moved(kind)
    assert float((rounded - exact).norm() / (exact - start).norm()) < 0.05
    assert not torch.equal(rounded, exact)


def test_bfloat16_moments_differ_from_torch_s_in_nothing_but_their_rounding() -> None:
    """One update from nothing: no moment has been rounded yet."""
    assert torch.allclose(moved("adamw_bf16", 1), moved("adamw", 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("adamw", 1.0, 1.01), ("adamw_bf16", 0.5, 0.51), ("adamw_8bit", 0.25, 0.35)]
)
def test_what_the_moments_take_as_a_share_of_fp32(kind: str, least: float, most: float) -> None:
    of = [nn.Parameter(torch.randn(256, 512))]
    optimizer = optimizer_of(kind, of)
    steps(optimizer, of, 0, 1)
    taken = sum(t.nbytes for t in moments(optimizer).values())
    assert least <= taken / (2 * 4 * of[0].numel()) <= most


@pytest.mark.parametrize("kind", KINDS)
def test_moments_go_to_disk_and_come_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    steady, broken = parameters(), parameters()
    optimizer = optimizer_of(kind, steady)
    steps(optimizer, steady, 0, 6)
    first = optimizer_of(kind, broken)
    steps(first, broken, 0, 3)
    save_file({name: t.contiguous() for name, t in moments(first).items()}, tmp_path / "moments.safetensors")
    second = optimizer_of(kind, broken)
    take_up(second, load_file(tmp_path / "moments.safetensors"))
    steps(second, broken, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(steady, broken, strict=True))


def test_a_second_moment_that_would_stand_still_is_refused() -> None:
    with pytest.raises(ValidationError, match="would stand still"):
        recipe({"optimizer": "adamw_bf16", "betas": [0.9, 0.999]})


def trainer(kind: str) -> Trainer:
    pytest.importorskip("torchao") if kind == "adamw_8bit" else None
    of = recipe({"optimizer": kind, "learning_rate": 1e-2, "warmup_steps": 4})
    return Trainer(policy_model(llama(), of), of)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_of_each_kind_goes_on_from_its_checkpoint_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Through the trainer's own update, warm-up and all."""
    steady = trainer(kind)
    steady.train(random_groups(0), 3)
    found = checkpoint.write(tmp_path, 1, steady.state(), {}, keep=1)
    again = trainer(kind)
    again.load(found.verified())
    for one in (steady, again):
        one.train(random_groups(1), 3)
        assert one.updates == 2
    restored = again.state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in steady.state_dict().items())


@pytest.mark.parametrize(("kind", "other"), [("adamw", "adamw_bf16"), ("adamw_bf16", "adamw")])
def test_the_moments_of_another_optimizer_are_not_taken_for_one_s_own(kind: str, other: str, tmp_path: Path) -> None:
    of = trainer(kind)
    of.train(random_groups(0), 3)
    found = checkpoint.write(tmp_path, 1, of.state(), {}, keep=1)
    with pytest.raises(Refused, match=f"moments of learner.optimizer = '{kind}', not of '{other}'"):
        trainer(other).load(found.verified())


def test_a_checkpoint_without_moments_suits_every_optimizer(tmp_path: Path) -> None:
    """The first one of a run."""
    found = checkpoint.write(tmp_path, 0, trainer("adamw").state(), {}, keep=1)
    trainer("adamw_bf16").load(found.verified())


def test_a_rate_that_is_kept_in_a_tensor_stays_in_it() -> None:
    of = parameters()
    kept = torch.tensor(1.0)
    optimizer = torch.optim.SGD(of, lr=kept)
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is kept
    assert float(kept) == 0.25
