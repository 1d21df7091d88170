"""The optimizer that a recipe asks for: AdamW, its moments in fp32, in bfloat16, or in 8 bits.

Invariant: whatever the moments are kept in, an update is computed in fp32 from fp32 masters, and its state goes to disk
and comes back to the bit, as plain named tensors. Refuses to know gradients' origin and schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from broker.errors import Refused
from consumer.settings import LearnerSettings

QUANTISED = ("codes", "scale", "qmap")  # what a moment in 8 bits consists of


class AdamWBf16(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) whose two moments are stored in bfloat16: 4 bytes a weight instead of 8.

    Parameter by parameter, so that no more than one has moments in fp32 at a time. bfloat16 rounds away a change of
    less than 0.4 %, so a second moment that changes by less a step (β2 near 1) would stand still: settings refuse that.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        (first, second), steps, gradient = group["betas"], float(state["step"]), parameter.grad
        mean = state["exp_avg"].to(parameter.dtype).lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].to(parameter.dtype).mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        root = square.div_(1 - second**steps).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - first**steps))


def make_optimizer(
    parameters: Sequence[nn.Parameter], settings: LearnerSettings, world: int = 1
) -> torch.optim.Optimizer:
    """AdamW over `parameters`, as `settings` say. Raises `Refused` for one that cannot be had."""
    usual: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw_bf16":
        return AdamWBf16(parameters, **usual)
    if settings.optimizer == "adamw_8bit":
        if world > 1:
            raise Refused("learner.optimizer = 'adamw_8bit' keeps no moments in parts yet", "use 'adamw_bf16'")
        return _torchao().AdamW8bit(parameters, **usual)  # type: ignore[no-any-return]
    return torch.optim.AdamW(parameters, fused=True, **usual)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next update. torchao's optimizers keep it in a tensor and accept no number instead."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def update(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`; torchao's is compiled for a GPU, where that is worth its while."""
    on_gpu = optimizer.param_groups[0]["params"][0].is_cuda
    with torch.compiler.set_stance("default" if on_gpu else "force_eager"):
        optimizer.step()


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as plain tensors: `index.slot`, or `index.slot.part` of a moment in 8 bits."""
    out: dict[str, Tensor] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if hasattr(value, "codes"):
                out |= {f"{index}.{name}.{part}": getattr(value, part) for part in QUANTISED}
            else:
                out[f"{index}.{name}"] = value
    return out


def kind_of(moments: Mapping[str, torch.dtype]) -> str:
    """The `learner.optimizer` that left moments of these names and types; '' where there are none yet."""
    if any(name.endswith(".codes") for name in moments):
        return "adamw_8bit"
    if any(".exp_avg" in name and dtype == torch.bfloat16 for name, dtype in moments.items()):
        return "adamw_bf16"
    return "adamw" if moments else ""


def take_up(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The reverse of `moments`. Not by `load_state_dict`, which casts every moment to its parameter's type."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Any]] = {}
    for key, value in state.items():
        index, name, *part = key.split(".")
        slot = slots.setdefault(int(index), {})
        if part:
            slot.setdefault(name, {})[part[0]] = value
        else:
            slot[name] = value
    optimizer.state.clear()
    for number, found in slots.items():
        device = parameters[number].device
        optimizer.state[parameters[number]] = {name: _moment(name, value, device) for name, value in found.items()}


def _moment(name: str, value: Tensor | Mapping[str, Tensor], device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    parts = [value[part].detach().clone().to(device) for part in QUANTISED]
    moment: Tensor = _torchao().subclass_8bit.OptimState8bit(*parts, signed=name == "exp_avg")
    return moment


def _torchao() -> Any:
    try:
        import torchao.optim  # heavy, and needed by few
        import torchao.optim.subclass_8bit
    except ImportError:
        raise Refused(
            "learner.optimizer = 'adamw_8bit' needs torchao", "pip install torchao, or use learner.optimizer = 'adamw'"
        ) from None
    return torchao.optim
