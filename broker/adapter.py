"""A policy version that is an adapter (LoRA): what its folder holds, and the one way it is laid onto its base.

Invariant: learner and generator add an adapter to a weight by the same arithmetic: on one kind of processor and with as
many threads they come to the same bits, else to rounding. Refuses to know torch, and what a model computes.

The folder is as peft writes and reads it: `adapter_config.json` and `adapter_model.safetensors`, whose header also says
which weights it belongs to (`base`) and what a policy's weights are rounded to (`dtype`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from broker.documents import indexed_weights, read_object
from broker.errors import Malformed
from broker.files import sha256

Array = npt.NDArray[np.float32]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
MOST_SCALE = 1e6  # far beyond any use, and far below where float32 ends
DTYPES = ("float32", "bfloat16")
PLAIN = {"peft_type": "LORA", "bias": "none"}
# What else it might be, it is not: each would make it another addition than alpha/r·B·A to the named weights.
ABSENT = (
    *("use_dora", "use_rslora", "use_qalora", "lora_bias", "alpha_pattern", "rank_pattern", "layer_replication"),
    *("modules_to_save", "trainable_token_indices", "target_parameters"),
)


@dataclass(frozen=True)
class Adapter:
    """Low-rank additions to weights by the weight's name: `down` (r, I) and `up` (O, r), both float32.

    `scale` is alpha/r; `transposed`: the base keeps its weights as (I, O).
    """

    down: Mapping[str, Array]
    up: Mapping[str, Array]
    scale: float
    transposed: bool
    base: str
    dtype: str

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """From a version's folder. Raises `Malformed`, `OSError`."""
        config = read_object((folder / CONFIG).read_bytes())
        rank: Any = config.get("r")
        alpha: Any = config.get("lora_alpha")
        _check(type(rank) is int and 0 < rank < 2**16, f"{CONFIG}: r")
        _check(isinstance(alpha, int | float) and not isinstance(alpha, bool), f"{CONFIG}: lora_alpha")
        _check(isinstance(config.get("fan_in_fan_out", False), bool), f"{CONFIG}: fan_in_fan_out")
        for name, value in PLAIN.items():
            _check(config.get(name, value) == value, f"{CONFIG}: {name}")
        for name in ABSENT:
            _check(not config.get(name), f"{CONFIG}: {name}")
        try:
            with safe_open(folder / WEIGHTS, framework="numpy") as opened:
                header, names = opened.metadata() or {}, list(opened.keys())
                for name in names:  # numpy has no bfloat16, and says so by errors of its own
                    _check(opened.get_slice(name).get_dtype() == "F32", f"{WEIGHTS}: {name[:100]}")
                tensors = {name: opened.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise Malformed(f"{WEIGHTS} is not a complete safetensors file: {error}") from None
        _check(header.get("dtype") in DTYPES and isinstance(header.get("base"), str), f"{WEIGHTS}: header")
        down, up = _sides(tensors, int(rank))
        _check(abs(alpha) <= MOST_SCALE * rank, f"{CONFIG}: lora_alpha")
        scale = float(alpha) / rank
        return cls(down, up, scale, bool(config.get("fan_in_fan_out")), header["base"], header["dtype"])

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `Malformed` unless each addition is to a weight of a base with these `shapes`, and has its shape."""
        for name in self.down:
            added = (self.up[name].shape[0], self.down[name].shape[1])
            _check(shapes.get(name) == (added[::-1] if self.transposed else added), f"no weight {name} for the adapter")

    def onto(self, name: str, weight: Array) -> Array:
        """The weight `name` with its addition, if it has one; float32."""
        if name not in self.down:
            return weight
        return merged(weight, self.down[name], self.up[name], self.scale, self.transposed)


def is_adapter(folder: Path) -> bool:
    """A version's folder holds an adapter and not a whole model."""
    return (folder / WEIGHTS).is_file()


def merged(weight: Array, down: Array, up: Array, scale: float, transposed: bool) -> Array:
    """W + scale·(B·A) in float32, with A = `down` (r, I) and B = `up` (O, r); (O, I), or (I, O) where transposed."""
    addition = (up @ down) * np.float32(scale)
    out: Array = weight + (addition.T if transposed else addition)
    return out


@lru_cache(maxsize=4)
def digest(folder: Path) -> str:
    """Of a model's weight files, by which an adapter knows its base; read once a process."""
    names = indexed_weights(folder) or sorted(path.name for path in folder.glob("*.safetensors"))
    return hashlib.sha256("".join(sha256(folder / name) for name in names).encode()).hexdigest()


def _sides(tensors: Mapping[str, npt.NDArray[np.generic]], rank: int) -> tuple[dict[str, Array], dict[str, Array]]:
    sides: dict[str, dict[str, Array]] = {DOWN: {}, UP: {}}
    for key, tensor in tensors.items():
        side = next((s for s in sides if key.endswith(s)), "")
        _check(bool(side) and key.startswith(PREFIX), f"{WEIGHTS}: {key[:100]}")
        wide = tensor.ndim == 2 and tensor.shape[0 if side == DOWN else 1] == rank
        _check(wide and bool(np.isfinite(tensor).all()), f"{WEIGHTS}: {key[:100]}")
        sides[side][key.removeprefix(PREFIX).removesuffix(side) + ".weight"] = tensor.astype(np.float32, copy=False)
    _check(sides[DOWN].keys() == sides[UP].keys() and bool(sides[DOWN]), f"{WEIGHTS}: one side without the other")
    return sides[DOWN], sides[UP]


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(what)
