"""What a policy version consists of in Redis: chunks of its files, whole or as differences from an earlier version.

Invariant: a shipment that was read is sane: no more chunks than any model has, and a difference is from an older
version, whose content it names. Refuses to know where chunks and shipments lie.
"""

from __future__ import annotations

from typing import Literal, Self

import zstandard
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from broker.errors import Malformed
from broker.manifest import FileEntry, Manifest

MOST_CHUNK_BYTES = 16 << 20
MOST_CHUNKS = 1 << 20  # two terabytes of usual ones


class Base(BaseModel):
    """The version that chunks differ from, and the digest of its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    policy_version: NonNegativeInt
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class Shipment(BaseModel):
    """One version, its files one after another in the order of their names; `packed_bytes` is what its chunks take."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_version: Literal[2]
    name: str = Field(pattern=r"^[0-9a-f]{32}$")
    chunk_bytes: int = Field(ge=1, le=MOST_CHUNK_BYTES)
    packed_bytes: NonNegativeInt
    manifest: Manifest
    base: Base | None = None

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.chunks > MOST_CHUNKS:
            raise ValueError("more chunks than any model has")
        if self.base is not None and self.base.policy_version >= self.version:
            raise ValueError("a difference from a version that came later")
        return self

    @property
    def version(self) -> int:
        """Which one."""
        return self.manifest.policy_version

    @property
    def chunks(self) -> int:
        """How many there are."""
        return sum(self.chunks_of(entry) for entry in self.manifest.files.values())

    def chunks_of(self, entry: FileEntry) -> int:
        """How many of them are a file's."""
        return -(-entry.size // self.chunk_bytes)

    @property
    def field(self) -> str:
        """Where it stands among the shipments of a run."""
        return field(self.version, self.base is None)


def field(version: int, whole: bool) -> str:
    """A version may be there whole, as a difference, or as both."""
    return str(version) if whole else f"{version}.delta"


def version_of(name: bytes) -> int | None:
    """Of a field; None where it is none."""
    number = name.removesuffix(b".delta")
    return int(number) if number.isdigit() else None


def decode_shipment(raw: bytes, run: str, version: int, *, whole: bool = True) -> Shipment:
    """What `version` of `run` consists of. Raises `Malformed`."""
    try:
        found = Shipment.model_validate_json(raw)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise Malformed(f"the shipment of policy version {version} cannot be read: {reason}") from None
    if (found.manifest.run, found.field) != (run, field(version, whole)):
        raise Malformed(f"the shipment of policy version {version} is another version's")
    return found


def decode_chunk(raw: bytes, longest: int) -> bytes:
    """What a zstd frame holds, `longest` bytes at most. Raises `Malformed`."""
    try:
        if zstandard.frame_content_size(raw) > longest:
            raise Malformed("larger than it says")
        return zstandard.ZstdDecompressor().decompress(raw, max_output_size=longest)
    except zstandard.ZstdError as error:
        raise Malformed(f"damaged: {error}") from None
