"""Folders of weights as chunks in Redis, for generators that share no file system with the learner.

Invariant: a version is there from the moment its last chunk is, whole, until it is retired, and what is fetched is byte
for byte what was shipped; only the run's writer (its fence) changes anything. Refuses to know what the files mean, and
who leases what.

A shipment is the files of one version, one after another in the order of their names, cut into chunks, each a zstd
frame with a checksum of its own; the manifest's hashes are of whole files. Whatever a writer leaves behind, unfinished
or replaced, is on record in `shipments` and swept by the next.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import redis
import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.errors import Behind, Fenced, Malformed
from broker.fence import Fence
from broker.keys import Keys
from broker.manifest import NAME as MANIFEST_NAME
from broker.manifest import FileEntry, Manifest
from broker.points import reached
from broker.scripts import APPEAR, CLEAR, RETIRE, STORE

CHUNK_BYTES = 2 << 20  # below 1 MB commands cost, above 4 MB the server's buffers do
MOST_CHUNK_BYTES = 16 << 20
MOST_CHUNKS = 1 << 20  # two terabytes of usual ones
LEVEL = 1  # of zstd: what is left of weights after this is noise
AT_ONCE = 256  # keys in one step of a removal
IN_FLIGHT = 4  # chunks that are asked for together: a network's delays add up
NAME = re.compile(rb'"name": ?"([0-9a-f]{32})"')


class Shipment(BaseModel):
    """What a version consists of in Redis."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_version: Literal[1]
    name: str = Field(pattern=r"^[0-9a-f]{32}$")
    chunk_bytes: int = Field(ge=1, le=MOST_CHUNK_BYTES)
    manifest: Manifest

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.chunks > MOST_CHUNKS:
            raise ValueError("more chunks than any model has")
        return self

    @property
    def chunks(self) -> int:
        """How many there are."""
        return sum(self.chunks_of(entry) for entry in self.manifest.files.values())

    def chunks_of(self, entry: FileEntry) -> int:
        """How many of them are a file's."""
        return -(-entry.size // self.chunk_bytes)

    def files(self) -> list[tuple[str, FileEntry]]:
        """In the order in which they are cut up."""
        return sorted(self.manifest.files.items())


class Freight:
    """Of one run. Without a `fence` it can be read only."""

    def __init__(self, client: redis.Redis, keys: Keys, fence: Fence | None = None) -> None:
        self._redis, self._keys, self._fence = client, keys, fence
        scripts = (client.register_script(text) for text in (STORE, APPEAR, RETIRE, CLEAR))
        self._store, self._appear, self._retire, self._remove = scripts

    def versions(self) -> set[int]:
        """Those that can be fetched."""
        names: Any = self._redis.hkeys(self._keys.weights)
        return {int(name) for name in names if name.isdigit()}

    def shipment(self, version: int) -> Shipment:
        """What `version` consists of. Raises `FileNotFoundError` where it is not, or not any more; `Malformed`."""
        raw: Any = self._redis.hget(self._keys.weights, str(version))
        if raw is None:
            raise FileNotFoundError(errno.ENOENT, f"policy version {version} is not in Redis, or not any more")
        return decode_shipment(raw, self._keys.run, version)

    # -- the learner's side ------------------------------------------------------------------------------------------

    def ship(self, folder: Path, manifest: Manifest, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Make the version of `manifest`, whose files are in `folder`, appear; nothing happens if it is there already.

        Raises `Fenced` where another learner has taken over, `Behind` where Redis has lost a part of it.
        """
        earlier = self._found(manifest.policy_version)
        if earlier is not None and earlier.manifest == manifest and self._whole(earlier):
            return
        new = Shipment(schema_version=1, name=uuid.uuid4().hex, chunk_bytes=chunk_bytes, manifest=manifest)
        try:
            self._send(folder, new)
        except Exception:
            with contextlib.suppress(redis.RedisError, Fenced, Behind):  # the next writer sweeps
                self._clear(new.name, new.chunks)
            raise
        replaced = ("", 0) if earlier is None else (earlier.name, earlier.chunks)
        prefix = self._keys.weight_chunk(new.name, "")
        appears = [new.name, new.chunks, prefix, manifest.policy_version, new.model_dump_json(), *replaced]
        self._must(self._appear, [self._keys.shipments, self._keys.weights], appears)
        reached("freight.appeared")
        if earlier is not None:
            self._clear(earlier.name, earlier.chunks)

    def _send(self, folder: Path, new: Shipment) -> None:
        pack = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
        for number, chunk in enumerate(_cut(folder, new)):
            keys = [self._keys.shipments, self._keys.weight_chunk(new.name, number), self._keys.weights]
            self._must(self._store, keys, [new.name, new.chunks, pack.compress(chunk), new.manifest.policy_version])
            reached("freight.chunk")

    def retire(self, version: int) -> None:
        """Remove `version`. Raises `Fenced`."""
        name, chunks = self._known(version)
        self._must(self._retire, [self._keys.shipments, self._keys.weights], [name, chunks, version])
        reached("freight.retired")
        self._clear(name, chunks)

    def sweep(self) -> None:
        """Remove what predecessors have begun or given up: call it once, before the first shipment. Raises `Fenced`."""
        left: Any = self._redis.hgetall(self._keys.shipments)
        for name, chunks in left.items():
            self._clear(name.decode(), int(chunks))

    def whole(self) -> set[int]:
        """Those of `versions` whose chunks are all there."""
        return {version for version in self.versions() if self._is_whole(version)}

    def _is_whole(self, version: int) -> bool:
        try:
            return self._whole(self.shipment(version))
        except (FileNotFoundError, Malformed):
            return False

    def _clear(self, name: str, chunks: int) -> None:
        for start in range(0, max(1, chunks), AT_ONCE):
            end = min(chunks, start + AT_ONCE)
            prefix, last = self._keys.weight_chunk(name, ""), int(end == chunks)
            self._must(self._remove, [self._keys.shipments], [name, start, end, prefix, last])

    def _known(self, version: int) -> tuple[str, int]:
        """Name and number of chunks; of a shipment that cannot be read, as many as are there."""
        try:
            found = self._found(version)
            return (found.name, found.chunks) if found else ("", 0)
        except Malformed:
            raw: Any = self._redis.hget(self._keys.weights, str(version))
        name = NAME.search(raw or b"")
        if name is None:
            return "", 0
        text = name[1].decode()
        missing = (n for n in itertools.count() if not self._redis.exists(self._keys.weight_chunk(text, n)))
        return text, next(missing)

    def _found(self, version: int) -> Shipment | None:
        try:
            return self.shipment(version)
        except FileNotFoundError:
            return None

    def _whole(self, found: Shipment) -> bool:
        keys = [self._keys.weight_chunk(found.name, number) for number in range(found.chunks)]
        there: Any = self._redis.exists(*keys) if keys else 0
        return bool(there == len(keys))

    def _must(self, script: Any, keys: list[str], arguments: list[Any]) -> None:
        assert self._fence is not None, "only the learner ships"
        if not script([self._keys.writer, *keys], [self._fence.mark.owner, *arguments]):
            self._fence.check()
            raise Behind("Redis has lost a part of a policy version that was being uploaded")

    # -- a generator's side ------------------------------------------------------------------------------------------

    def fetch(self, version: int, folder: Path, carry_on: Callable[[], None] = lambda: None) -> None:
        """Write the files of `version`, and their manifest, into the empty `folder`; `carry_on` is called now and then.

        Raises `FileNotFoundError` where it is not there, or not any more; `Malformed` where it is not what was shipped;
        and what `carry_on` raises.
        """
        found = self.shipment(version)
        chunks = self._chunks(found)
        for name, entry in found.files():
            path = folder / name
            for above in reversed(path.relative_to(folder).parents[:-1]):
                (folder / above).mkdir(exist_ok=True)
            digest, size = hashlib.sha256(), 0
            with path.open("wb") as file:
                for chunk in itertools.islice(chunks, found.chunks_of(entry)):
                    carry_on()
                    digest.update(chunk)
                    size += file.write(chunk)
            if (size, digest.hexdigest()) != (entry.size, entry.sha256):
                raise Malformed(f"{name} of policy version {version} is not what was shipped")
        (folder / MANIFEST_NAME).write_text(found.manifest.model_dump_json(indent=1), encoding="utf-8")

    def _chunks(self, found: Shipment) -> Iterator[bytes]:
        for start in range(0, found.chunks, IN_FLIGHT):
            numbers = range(start, min(found.chunks, start + IN_FLIGHT))
            raw: Any = self._redis.mget([self._keys.weight_chunk(found.name, number) for number in numbers])
            for number, chunk in zip(numbers, raw, strict=True):
                yield self._chunk(found, number, chunk)

    def _chunk(self, found: Shipment, number: int, raw: bytes | None) -> bytes:
        version = found.manifest.policy_version
        if raw is None:
            raise FileNotFoundError(errno.ENOENT, f"a part of policy version {version} is not in Redis any more")
        try:
            return decode_chunk(raw, found.chunk_bytes)
        except Malformed as error:
            raise Malformed(f"chunk {number} of policy version {version} is {error}") from None


def decode_shipment(raw: bytes, run: str, version: int) -> Shipment:
    """What `version` of `run` consists of. Raises `Malformed`."""
    try:
        found = Shipment.model_validate_json(raw)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise Malformed(f"the shipment of policy version {version} cannot be read: {reason}") from None
    if (found.manifest.run, found.manifest.policy_version) != (run, version):
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


def _cut(folder: Path, of: Shipment) -> Iterator[bytes]:
    for name, _ in of.files():
        with (folder / name).open("rb") as file:
            while chunk := file.read(of.chunk_bytes):
                yield chunk
