"""A generator's side of policy versions in Redis: fetches one into a folder, from another that it holds if it can.

Invariant: what is in the folder afterwards is byte for byte what the learner wrote, by the hash of every file, or
`Malformed` is raised. Refuses to know who leases what, and what files mean.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import structlog

from broker import delta
from broker.errors import Malformed
from broker.freight import Freight, route
from broker.manifest import NAME as MANIFEST_NAME
from broker.manifest import Stored, verify
from broker.shipment import Shipment, decode_chunk

IN_FLIGHT = 4  # chunks that are asked for together: a network's delays add up

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Fetcher(Freight):
    """Of one run."""

    def fetch(
        self, version: int, folder: Path, carry_on: Callable[[], None] = lambda: None, held: Stored | None = None
    ) -> None:
        """Write the files of `version`, and their manifest, into the empty `folder`; `carry_on` is called now and then.

        `held` is another version on disk. Raises `FileNotFoundError` where this one is not there, or not any more;
        `Malformed` where it is not what was shipped; and what `carry_on` raises.
        """
        if held is not None:
            try:
                self._fetch(version, folder, carry_on, held)
            except (Malformed, FileNotFoundError) as why:  # what is held, perhaps, or the differences from it
                log.warning("a policy version is fetched whole", version=version, why=str(why))
                shutil.rmtree(folder)
                folder.mkdir()
            else:
                return
        self._fetch(version, folder, carry_on, None)

    def _fetch(self, version: int, folder: Path, carry_on: Callable[[], None], held: Stored | None) -> None:
        way = route(version, self.shipment, None if held is None else held.manifest)
        differences = list(way.shipments)
        if way.held is None or held is None:
            self._write(folder, differences.pop(0), carry_on)
        else:
            _copy(held, folder)
        for shipment in differences:
            self._lay(folder, shipment, carry_on)
        manifest = way.shipments[-1].manifest
        try:
            verify(folder, manifest)
        except Malformed as error:
            raise Malformed(f"policy version {version} is not what was shipped: {error}") from None
        (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")

    def _write(self, folder: Path, of: Shipment, carry_on: Callable[[], None]) -> None:
        chunks = self._chunks(of)
        for name, entry in sorted(of.manifest.files.items()):
            with _made(folder / name, folder).open("wb") as file:
                for number, chunk in itertools.islice(chunks, of.chunks_of(entry)):
                    carry_on()
                    file.write(_decoded(of, number, decode_chunk, chunk, of.chunk_bytes))

    def _lay(self, folder: Path, of: Shipment, carry_on: Callable[[], None]) -> None:
        chunks = self._chunks(of)
        for name, entry in sorted(of.manifest.files.items()):
            with (folder / name).open("r+b") as file:
                for number, chunk in itertools.islice(chunks, of.chunks_of(entry)):
                    carry_on()
                    start, numbers = file.tell(), bytearray(file.read(of.chunk_bytes))
                    _decoded(of, number, delta.lay, chunk, numbers)
                    file.seek(start)
                    file.write(numbers)

    def _chunks(self, of: Shipment) -> Iterator[tuple[int, bytes]]:
        for start in range(0, of.chunks, IN_FLIGHT):
            numbers = range(start, min(of.chunks, start + IN_FLIGHT))
            yield from zip(numbers, self.chunks(of, numbers), strict=True)


def _copy(held: Stored, folder: Path) -> None:
    """Copied by the system and then changed in place: less than to read and write all of it."""
    for name in held.manifest.files:
        path = _made(folder / name, folder)
        try:
            shutil.copyfile(held.folder / name, path)
        except FileNotFoundError:
            raise Malformed(f"{held.folder / name} is gone") from None


def _made(path: Path, folder: Path) -> Path:
    for above in reversed(path.relative_to(folder).parents[:-1]):
        (folder / above).mkdir(exist_ok=True)
    return path


def _decoded(of: Shipment, number: int, decode: Callable[..., T], *arguments: object) -> T:
    try:
        return decode(*arguments)
    except Malformed as error:
        raise Malformed(f"chunk {number} of policy version {of.version} is {error}") from None
