"""Checkpoints: everything a learner needs to go on, durable before anything is acknowledged.

Invariant: a folder with its final name is complete and matches its checksums; a crash while writing leaves the
previous one. Refuses to know what is inside: named tensors, as safetensors, and a JSON document; nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from broker.errors import Malformed, Refused
from broker.files import flush, room_for, sha256
from consumer.document import read_document

STATE, DOCUMENT = "state.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One durable checkpoint: `document` is plain data (step, version, ledger sequence …), `state` the tensors."""

    folder: Path
    document: dict[str, Any]

    def state(self) -> dict[str, Tensor]:
        """The tensors, verified against the checksum. Raises `Refused` when the file is not what was written."""
        path = self.folder / STATE
        if sha256(path) != self.document["sha256"]:
            raise Refused(f"checkpoint {self.folder} is damaged", "delete that folder to resume from the one before it")
        try:
            return load_file(path)
        except SafetensorError:  # written so, by something else than `write`
            raise Refused(f"checkpoint {self.folder} holds no tensors", "delete that folder") from None


def write(
    root: Path, step: int, state: dict[str, Tensor], document: Mapping[str, Any], keep: int, keep_every: int = 0
) -> Checkpoint:
    """Write `root/step-…` atomically and durably, then remove all but the newest `keep` and the `milestones`.

    A full disk raises `OSError` (ENOSPC) that names `root`, and leaves what was there.
    """
    root.mkdir(parents=True, exist_ok=True)
    final, temporary = root / f"step-{step:08d}", root / f".step-{step:08d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with room_for(f"the checkpoint of step {step}", root):
            save_file(state, temporary / STATE)
            full = {**document, "step": step, "sha256": sha256(temporary / STATE)}
            (temporary / DOCUMENT).write_text(json.dumps(full))
            for name in (STATE, DOCUMENT):
                flush(temporary / name)
            flush(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        flush(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    folders = _folders(root)
    for old in set(folders[:-keep]) - set(milestones(folders, keep_every)):
        shutil.rmtree(old)
    return Checkpoint(final, full)


def newest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None. Leftovers of a crashed writer are removed."""
    if not root.is_dir():
        return None
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover)
    folders = _folders(root)
    if not folders:
        return None
    try:
        return Checkpoint(folders[-1], read_document((folders[-1] / DOCUMENT).read_bytes()))
    except (OSError, Malformed):
        raise Refused(
            f"checkpoint {folders[-1]} is damaged", "delete that folder to resume from the one before it"
        ) from None


def milestones(folders: Sequence[Path], every: int) -> list[Path]:
    """Of checkpoints, oldest first, the first at or past each multiple of `every` steps above 0."""
    found, reached = [], 0
    for folder in folders:
        passed = int(folder.name.removeprefix("step-")) // every if every else 0
        if passed > reached:
            found.append(folder)
            reached = passed
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name.startswith("step-"))
