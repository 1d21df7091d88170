"""What a step costs: laps that add up, and floating-point operations that are counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from consumer.effort import Flops, Laps, peak, peak_of
from tests.clock import Clock
from tests.consumer.groups import gpt2, llama


def test_laps_are_the_whole_time_and_a_phase_may_come_again() -> None:
    clock = Clock(10.0)
    laps = Laps(clock)
    for phase, seconds in (("pack", 1.0), ("forward_backward", 4.0), ("pack", 2.0), ("optimizer", 0.5)):
        clock.now += seconds
        laps.lap(phase)
    assert laps.seconds == {"pack": 3.0, "forward_backward": 4.0, "optimizer": 0.5}
    assert laps.total == 7.5


def multiplied(module: Any) -> int:
    """Weights that a token is multiplied with: a linear layer's, whatever it is called, and the norms' few."""
    linear: int = sum(m.weight.numel() for m in module.modules() if type(m).__name__ in ("Linear", "Conv1D"))
    few: int = sum(p.numel() for p in module.parameters() if p.dim() == 1)
    return linear + few


def test_a_token_costs_six_a_weight_that_is_multiplied_and_trained() -> None:
    config = llama().config
    config.tie_word_embeddings = False
    untied = type(llama())(config)
    assert untied.get_input_embeddings().weight is not untied.get_output_embeddings().weight
    assert Flops.of(untied) == Flops(2.0 * multiplied(untied), 6.0 * multiplied(untied))


def test_a_tied_table_is_multiplied_once_as_the_head() -> None:
    assert Flops.of(llama()).forward == 2.0 * multiplied(llama())
    tied = gpt2()
    positions = tied.transformer.wpe.weight.numel()
    assert Flops.of(tied).forward == 2.0 * (multiplied(tied) + positions), "positions are few enough to be left in"


def test_a_frozen_weight_costs_no_gradient_of_its_own() -> None:
    module: nn.Module = llama(0)
    whole = Flops.of(module)
    module.requires_grad_(False)
    assert Flops.of(module) == Flops(whole.forward, 2 * whole.forward)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA GeForce RTX 3090 Ti", 71e12),
        ("somebody's accelerator", None),
    ],
)
def test_what_a_device_can_do_goes_by_its_name(name: str, flops: float | None) -> None:
    assert peak_of(name) == flops


def test_nobody_knows_what_a_cpu_can_do() -> None:
    assert peak(torch.device("cpu"), bfloat16=True) is None
    assert peak(torch.device("cuda"), bfloat16=False) is None, "another number format has another peak"
