"""What a tokenizer is, as bytes: so that both sides can tell whether they mean the same one without loading it.

Invariant: two folders with the same hash hold the same tokenizer files, names and bytes.
Refuses to know tokens and text.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from broker.errors import Refused

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


def copy_tokenizer_files(source: Path, target: Path) -> list[str]:
    """Copy them byte for byte into the existing folder `target`; returns their names. Raises `Refused`."""
    names = []
    for path in tokenizer_files(source):
        name = path.relative_to(source)
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)  # hub caches hold links: the bytes are copied, not the link
        names.append(name.as_posix())
    return names
