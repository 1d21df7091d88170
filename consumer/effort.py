"""What a step costs: its seconds by phase, and the arithmetic that its model asks for.

Invariant: phases are laps, so together they are the whole step; floating-point operations are the model's, whatever an
implementation spends on padding or recomputation. Refuses to know what is computed.

Model FLOPs are estimated as usual (Kaplan et al. 2020; MFU: Chowdhery et al. 2022): 2 a weight and token forward, 2
more backward to the activations, 2 more to a weight that is trained: 6·N·tokens where all are. N leaves out an input
embedding that is a table of its own; attention's scores are left out, so long sequences do more than is counted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

# Dense bfloat16 with fp32 accumulation, FLOP/s, from the makers' data sheets; the first name that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass
class Laps:
    """A stopwatch: what passed since the last lap belongs to the phase that is named at its end."""

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def lap(self, phase: str) -> None:
        """A phase, or another part of it, is over."""
        now = self.clock()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """All laps."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Flops:
    """Of a token: a forward pass, and forward and backward."""

    forward: float
    training: float

    @staticmethod
    def of(module: Any) -> Flops:
        """Of a causal language model of transformers, on however many ranks its weights are spread."""
        weights = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        table, head = module.get_input_embeddings(), module.get_output_embeddings()
        if head is not None and table.weight is not head.weight:  # looked up, never multiplied by
            weights -= table.weight.numel()
            trained -= table.weight.numel() * table.weight.requires_grad
        return Flops(2.0 * weights, 4.0 * weights + 2.0 * trained)


def peak(device: torch.device, *, bfloat16: bool) -> float | None:
    """What a device can do a second; None where that is not known, or other numbers than bfloat16 are multiplied."""
    if device.type != "cuda" or not bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Of a device that torch calls so."""
    return next((flops for known, flops in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)
