"""Regional compilation: each layer of a model compiled by torch, once for all of them and for all lengths.

Invariant: it changes the speed of a model and nothing else that anybody sees: names, parameters and results stay.
Refuses to know what the layers compute.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from broker.errors import Refused


def compile_layers(module: nn.Module, device: torch.device) -> None:
    """Let torch compile the layers as they are first used. Raises `Refused` where that would fail."""
    reason = why_not(device)
    if reason is not None:
        raise Refused(f"learner.compile is set and {reason}", "use learner.compile = false")
    layers = layers_of(module)
    if not layers:
        raise Refused(f"learner.compile is set and {type(module).__name__} has no layers that transformers knows")
    for layer in layers:
        layer.compile(dynamic=True)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, each of which is computed as one piece."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


def why_not(device: torch.device) -> str | None:
    """Why torch cannot compile for this device here, if it cannot."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    wanted = [os.environ[name] for name in ("CXX",) if name in os.environ] or ["g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        return "there is no C++ compiler on this machine"
    return None
