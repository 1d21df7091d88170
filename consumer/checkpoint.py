"""Checkpoints: everything a learner needs to go on, durable before anything is acknowledged.

Invariant: a folder with its final name is complete and matches its checksums; a crash while writing leaves the
previous one. Refuses to know what is inside: named tensors, as safetensors, and a JSON document; nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from broker.cut import Cut
from broker.errors import Malformed, Refused
from broker.files import flush, room_for, sha256
from broker.points import reached
from consumer.document import read_document
from consumer.history import History

STATE, DOCUMENT = "state.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One durable checkpoint: `document` is plain data (step, version, ledger sequence …), `state` the tensors."""

    folder: Path
    document: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that are in it."""
        return int(self.document["step"])

    @cached_property
    def cut(self) -> Cut:
        """The books when its newest step was committed. Raises `Refused`."""
        try:
            return Cut.decode(self.document.get("cut"))
        except Malformed:
            raise _damaged(self.folder) from None

    def history(self, longest_rest: int) -> History:
        """How groups had done when its newest step was committed. Raises `Refused`."""
        return History.decode(self.document.get("history", []), longest_rest, self.cut.observed)

    @cached_property
    def settled(self) -> Cut:
        """The books with all its steps final. Raises `Refused`."""
        return self.cut.trained(self.document["entry_ids"], self.document["sequence"])

    def state(self) -> dict[str, Tensor]:
        """The tensors, verified against the checksum. Raises `Refused` when the file is not what was written."""
        try:
            return load_file(self.verified() / STATE)
        except SafetensorError:  # written so, by something else than `write`
            raise _damaged(self.folder) from None

    def verified(self) -> Path:
        """The folder, its files being what was written. Raises `Refused`."""
        try:
            if any(sha256(self.folder / name) != digest for name, digest in self.document["sha256"].items()):
                raise _damaged(self.folder)
        except OSError:
            raise _damaged(self.folder) from None
        return self.folder


class Parts(Protocol):
    """Tensors that several processes write together."""

    def write(self, folder: Path) -> None:
        """As safetensors files in `folder`."""


def write(
    root: Path,
    step: int,
    state: Mapping[str, Tensor] | Parts,
    document: Mapping[str, Any],
    keep: int,
    keep_every: int = 0,
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
            if isinstance(state, Mapping):
                save_file(dict(state), temporary / STATE)
            else:
                state.write(temporary)
            reached("checkpoint.state-written")
            files = sorted(path.name for path in temporary.iterdir())
            full = {**document, "step": step, "sha256": {name: sha256(temporary / name) for name in files}}
            (temporary / DOCUMENT).write_text(json.dumps(full))
            for name in (*files, DOCUMENT):
                flush(temporary / name)
            flush(temporary)
        reached("checkpoint.flushed")
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        flush(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    folders = _folders(root)
    for old in set(folders[:-keep]) - set(milestones(folders, keep_every)):
        reached("checkpoint.pruning")
        shutil.rmtree(old)
    return Checkpoint(final, full)


def newest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None. Leftovers of a crashed writer are removed."""
    if not root.is_dir():
        return None
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover)
    folders = _folders(root)
    return _read(folders[-1]) if folders else None


def named(root: Path, step: int) -> Checkpoint:
    """The checkpoint of `step`. Raises `Refused`."""
    folders = {_step(folder): folder for folder in (_folders(root) if root.is_dir() else [])}
    if step not in folders:
        there = ", ".join(map(str, folders)) or "none"
        raise Refused(f"there is no checkpoint of step {step} in {root}", f"there are: {there}")
    return _read(folders[step])


def abandon(root: Path, step: int) -> list[Path]:
    """Set aside every checkpoint beyond `step`, under a name that no learner looks at; where they are now."""
    aside = []
    for folder in _folders(root):
        if _step(folder) > step:
            aside.append(folder.rename(root / f"abandoned-{folder.name}-{uuid.uuid4().hex[:6]}"))
    flush(root)
    return aside


def _read(folder: Path) -> Checkpoint:
    try:
        return Checkpoint(folder, read_document((folder / DOCUMENT).read_bytes()))
    except (OSError, Malformed):
        raise _damaged(folder) from None


def _damaged(folder: Path) -> Refused:
    older = [step for step in map(_step, _folders(folder.parent)) if step < _step(folder)]
    remedy = f"--learner.resume {older[-1]} goes on from the one before it" if older else "there is none before it"
    return Refused(f"checkpoint {folder} is damaged", remedy)


def milestones(folders: Sequence[Path], every: int) -> list[Path]:
    """Of checkpoints, oldest first, the first at or past each multiple of `every` steps above 0."""
    found, reached = [], 0
    for folder in folders:
        passed = _step(folder) // every if every else 0
        if passed > reached:
            found.append(folder)
            reached = passed
    return found


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name.startswith("step-"))
