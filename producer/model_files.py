"""What a model's folder says about itself: its end tokens, and the names and shapes of its weights.

Invariant: what `shapes` returns was read from files that are complete (safetensors checks its own length), so weights
that pass `verify` can be copied without meeting a missing, cut-off or misfitting tensor half-way.
Refuses to know how a model computes: no tensor is read here and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from broker.documents import indexed_weights
from broker.errors import Malformed, Refused
from producer.settings import GeneratorRecipe

Shapes = dict[str, tuple[int, ...]]

REMEDY = "run.model must be a directory with config.json and complete *.safetensors"


def end_tokens(model: str, recipe: GeneratorRecipe) -> tuple[int, ...]:
    """The tokens that end an answer. Raises `Refused` if the directory `model` holds no complete model."""
    config = _config(model, recipe.run.trust_remote_code)
    try:
        shapes(Path(model))
    except (OSError, ValueError) as error:
        raise Refused(f"the model in {model} has no usable weights ({first_line(error)})", REMEDY) from None
    return _eos(model, config.get_text_config(), recipe.run.trust_remote_code)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`; an index decides where there is one. Raises `OSError`, `ValueError`."""
    try:
        files = [folder / name for name in indexed_weights(folder)] or sorted(folder.glob("*.safetensors"))
    except Malformed as error:
        raise ValueError(str(error)) from None
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {folder}")
    return files


def shapes(folder: Path) -> Shapes:
    """Name and shape of every tensor in `folder`, from the headers alone. Raises `OSError`, `ValueError`."""
    found: Shapes = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as opened:
                found.update({name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is not a complete safetensors file: {error}") from None
    return found


def verify(found: Shapes, expected: Shapes, optional: Collection[str] = ()) -> None:
    """Raises `ValueError` unless `found` has the names and shapes of `expected`; `optional` ones (tied) may lack."""
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unknown = sorted(found.keys() - expected.keys() - set(optional))
    misfits = sorted(name for name in expected.keys() & found.keys() if found[name] != expected[name])
    for what, names in (("lack", missing), ("have an unknown", unknown), ("have a misshapen", misfits)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"the weights {what} {names[0]}{more}")


def _config(model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig  # late: it takes seconds to import

    if not (Path(model) / "config.json").is_file():  # transformers would take it for a hub name and go asking
        raise Refused(f"no model in {model}", REMEDY)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read the model in {model} ({first_line(error)})", REMEDY) from None


def _eos(model: str, config: Any, trust_remote_code: bool) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        declared = GenerationConfig.from_pretrained(model, trust_remote_code=trust_remote_code).eos_token_id
    except OSError:  # a model need not have one
        declared = None
    eos = declared if declared is not None else getattr(config, "eos_token_id", None)
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


def first_line(error: BaseException) -> str:
    """An error as one short line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:300]
