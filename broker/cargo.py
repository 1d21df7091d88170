"""A policy version's files, one after another in the order of their names, as chunks for a shipment.

Invariant: no chunk holds bytes of two files, so two versions with files of the same sizes are cut at the same places.
Refuses to know where chunks go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from broker import delta
from broker.errors import Malformed
from broker.manifest import Stored

LEVEL = 1  # of zstd: what is left of weights after this is noise


def packed(of: Stored, chunk_bytes: int) -> Iterator[bytes]:
    """Each chunk as a zstd frame with a checksum of its own."""
    pack = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    return (pack.compress(chunk) for name in sorted(of.manifest.files) for chunk in _cut(of.folder / name, chunk_bytes))


def differences(new: Stored, earlier: Stored, chunk_bytes: int) -> Iterator[bytes]:
    """Raises `Malformed` where `earlier` is not what its manifest says."""
    for name, entry in sorted(earlier.manifest.files.items()):
        digest = hashlib.sha256()
        for old, now in zip(
            _cut(earlier.folder / name, chunk_bytes), _cut(new.folder / name, chunk_bytes), strict=True
        ):
            digest.update(old)
            yield delta.between(old, now)
        if digest.hexdigest() != entry.sha256:
            raise Malformed(f"{earlier.folder / name} is not what was written (sha256 differs)")


def _cut(path: Path, chunk_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            yield chunk
