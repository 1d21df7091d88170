"""What a policy version consists of, byte for byte.

Invariant: a folder that passes `verify` holds exactly the files, sizes and bytes that `seal` found in it, nothing else.
Refuses to know what the files mean, where versions live and who reads them.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from broker.errors import Malformed
from broker.files import flush, sha256

NAME = "manifest.json"


class FileEntry(BaseModel):
    """What a file of a version must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    size: NonNegativeInt
    sha256: str


def _inside(name: str) -> str:
    """A path that cannot lead out of its folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name:
        raise ValueError("a file's name leads out of its folder")
    return name


class Manifest(BaseModel):
    """Every file in the folder of a version but the manifest itself, by its path in there."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_version: Literal[1]
    run: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    policy_version: NonNegativeInt
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]

    @property
    def sizes(self) -> dict[str, int]:
        """Of its files, in bytes."""
        return {name: entry.size for name, entry in self.files.items()}

    @property
    def digest(self) -> str:
        """Of what the files hold, in hexadecimal."""
        contents = "".join(f"{name}\0{entry.sha256}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(contents.encode()).hexdigest()


@dataclass(frozen=True)
class Stored:
    """A version on disk."""

    folder: Path
    manifest: Manifest


def seal(folder: Path, run: str, version: int) -> Manifest:
    """Write the manifest of what is in `folder`, with all of it flushed to disk. Raises `ValueError` if it is empty."""
    files = _files(folder)
    if not files:
        raise ValueError(f"nothing was written into {folder}")
    for path in {*files.values(), *(path.parent for path in files.values())}:
        flush(path)
    entries = {name: FileEntry(size=path.stat().st_size, sha256=sha256(path)) for name, path in files.items()}
    manifest = Manifest(schema_version=1, run=run, policy_version=version, files=entries)
    (folder / NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    flush(folder / NAME)
    flush(folder)
    return manifest


def read(folder: Path, run: str, version: int) -> Manifest:
    """The manifest of `folder`, which must be of that run and version. Raises `Malformed` or `FileNotFoundError`."""
    path = folder / NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        _must_be(folder)
        raise Malformed(f"{folder} has no {NAME}") from None
    except ValidationError as error:
        raise Malformed(f"{path} is not a manifest: {error.errors()[0]['msg']}") from None
    if (manifest.run, manifest.policy_version) != (run, version):
        raise Malformed(f"{path} is of version {manifest.policy_version} of run {manifest.run}")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Raises `Malformed` naming what is missing, strange or changed; `FileNotFoundError` if all is gone."""
    found = _files(folder)
    if odd := sorted(found.keys() ^ manifest.files.keys()):
        raise Malformed(f"{folder}: missing or not its own: {', '.join(odd)}")
    for name, entry in manifest.files.items():
        if (size := found[name].stat().st_size) != entry.size:
            raise Malformed(f"{found[name]} has {size} bytes instead of {entry.size}")
        if sha256(found[name]) != entry.sha256:
            raise Malformed(f"{found[name]} is not what was written (sha256 differs)")


def _files(folder: Path) -> dict[str, Path]:
    """Path inside the folder → file. Raises `Malformed` for a link, whose target could change unseen."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    _must_be(folder)  # rglob finds nothing, and says nothing, where there is no folder
    for path in found.values():
        if path.is_symlink():
            raise Malformed(f"{path} is a link")
    return {name: path for name, path in sorted(found.items()) if name != NAME and not path.is_dir()}


def _must_be(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "this policy version is not there, or not any more", str(folder))
