"""What a model and its tokenizer are, as bytes: so that both sides can tell whether they mean the same without loading.

Invariant: two folders with the same tokenizer hash hold the same tokenizer files, names and bytes; with the same model
hash, configurations that describe the same network. Refuses to know tokens, text and weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from broker.documents import read_object
from broker.errors import Malformed, Refused

# Everything that decides how text becomes token ids, the chat template included, for the layouts in use.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# What a library notes in a configuration about itself rather than about the network.
INCIDENTAL = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
POSITIONS = ("max_position_embeddings", "n_positions")
TOKENIZER_PATTERNS = ("*.tiktoken", "tokenization_*.py", "additional_chat_templates/*.jinja")


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer files that `folder` holds, sorted by their path inside it. Raises `Refused` if there are none."""
    found = {folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    found.update(path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern))
    if not found:
        raise Refused(f"no tokenizer in {folder}", "a model directory holds tokenizer.json or its like")
    return sorted(found)


def tokenizer_hash(folder: Path) -> str:
    """sha256 over names and bytes of the tokenizer files. Raises `Refused`."""
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def model_hash(folder: Path) -> str:
    """sha256 over what `config.json` says of the network. Raises `Refused` where there is none that can be read."""
    described = {key: value for key, value in _config(folder).items() if key not in INCIDENTAL}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def max_positions(folder: Path) -> int | None:
    """The longest sequence that the network can place, in tokens; None where it does not say. Raises `Refused`."""
    config = _config(folder)
    for described in (config.get("text_config"), config):
        for name in POSITIONS:
            if isinstance(described, dict) and isinstance(limit := described.get(name), int):
                return limit
    return None


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_object((folder / "config.json").read_bytes())
    except (OSError, Malformed) as error:
        raise Refused(
            f"cannot read {folder / 'config.json'} ({error})", "name a model directory in run.model"
        ) from None


def copy_tokenizer_files(source: Path, target: Path) -> list[str]:
    """Copy them byte for byte into the existing folder `target`; returns their names. Raises `Refused`."""
    names = []
    for path in tokenizer_files(source):
        name = path.relative_to(source)
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)  # hub caches hold links: the bytes are copied, not the link
        names.append(name.as_posix())
    return names
