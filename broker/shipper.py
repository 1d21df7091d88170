"""The learner's side of policy versions in Redis: ships them, whole or as differences, and retires them.

Invariant: only the run's writer (its fence) changes anything; whatever it leaves behind, unfinished or replaced, is on
record in `shipments` and swept by the next. Refuses to know who leases what, and what files mean.

Differences since an anchor take at most a quarter of what a whole version does, and are fewer than `anchor_every` of
them: so it is known how much is in Redis at most, and late readers have a short way.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import redis
import structlog

from broker.cargo import differences, packed
from broker.errors import Behind, Fenced, Malformed
from broker.fence import Fence
from broker.freight import Freight, route
from broker.keys import Keys
from broker.manifest import Manifest, Stored
from broker.points import reached
from broker.scripts import APPEAR, CLEAR, RETIRE, STORE
from broker.shipment import Base, Shipment, decode_shipment, field, version_of

CHUNK_BYTES = 2 << 20  # below 1 MB commands cost, above 4 MB the server's buffers do
DELTA_CHUNK_BYTES = 8 << 20  # of which a few hundredths are left
DELTAS_SHARE = 0.25  # of a whole version: all differences since it
AT_ONCE = 256  # keys in one step of a removal
NAME = re.compile(rb'"name": ?"([0-9a-f]{32})"')

log = structlog.get_logger(__name__)


class Shipper(Freight):
    """Of one run, whose writer `fence` is. `anchor_every` 1: every version is shipped whole."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        fence: Fence,
        anchor_every: int = 1,
        chunk_bytes: int = CHUNK_BYTES,
        delta_chunk_bytes: int = DELTA_CHUNK_BYTES,
    ) -> None:
        super().__init__(client, keys)
        self._fence, self._anchor_every = fence, anchor_every
        self._chunk_bytes, self._delta_chunk_bytes = chunk_bytes, delta_chunk_bytes
        scripts = (client.register_script(text) for text in (STORE, APPEAR, RETIRE, CLEAR))
        self._store, self._appear, self._retire, self._remove = scripts

    def ship(self, new: Stored, earlier: Stored | None = None) -> None:
        """Make a version appear, as its difference from an `earlier` one if that helps; nothing if it is there already.

        Raises `Fenced` where another learner has taken over, `Behind` where Redis has lost a part of it.
        """
        there = self._catalogue(complete=True)
        way = _way(new.manifest.policy_version, there)
        if way and way[-1].manifest == new.manifest:
            return
        since = None if earlier is None else self._since_anchor(earlier.manifest, new.manifest, there)
        differs = earlier is not None and since is not None and self._ship_difference(new, earlier, since)
        if not differs or len(since or ()) + 1 >= self._anchor_every:
            self._send(new.manifest, self._chunk_bytes, None, packed(new, self._chunk_bytes))
        self._retire_others(new.manifest)

    def available(self) -> set[int]:
        """Versions that can be fetched: every chunk on the way to them is there."""
        there = self._catalogue(complete=True)
        return {shipment.version for shipment in there.values() if _way(shipment.version, there)}

    def keep_only(self, versions: set[int]) -> None:
        """Retire everything on which no route to one of these versions depends. Raises `Fenced`."""
        needed, there = {field(version, whole) for version in versions for whole in (True, False)}, self._catalogue()
        needed |= {shipment.field for version in versions for shipment in _way(version, there)}
        names: Any = self._redis.hkeys(self._keys.weights)
        for name in sorted(names):
            if name.decode() not in needed:
                self._retire_field(name.decode())

    def sweep(self) -> None:
        """Remove what predecessors have begun or given up: call it once, before the first shipment. Raises `Fenced`."""
        left: Any = self._redis.hgetall(self._keys.shipments)
        for name, chunks in left.items():
            self._clear(name.decode(), int(chunks))

    # -- what is there -----------------------------------------------------------------------------------------------

    def _catalogue(self, *, complete: bool = False) -> dict[str, Shipment]:
        """By field: what can be read, and, if that is asked for, of which every chunk is there."""
        raw: Any = self._redis.hgetall(self._keys.weights)
        found = dict[str, Shipment]()
        for name, document in raw.items():
            version = version_of(name)
            if version is not None:
                with contextlib.suppress(Malformed):
                    whole = name.isdigit()
                    found[name.decode()] = decode_shipment(document, self._keys.run, version, whole=whole)
        if not complete:
            return found
        return {name: shipment for name, shipment in found.items() if self._complete(shipment)}

    def _complete(self, shipment: Shipment) -> bool:
        keys = [self._keys.weight_chunk(shipment.name, number) for number in range(shipment.chunks)]
        there: Any = self._redis.exists(*keys) if keys else 0
        return bool(there == len(keys))

    def _since_anchor(
        self, earlier: Manifest, new: Manifest, there: Mapping[str, Shipment]
    ) -> tuple[Shipment, ...] | None:
        """The differences from the last anchor up to `earlier`; None where one from there would be of no use."""
        if self._anchor_every == 1 or earlier.sizes != new.sizes or earlier.policy_version >= new.policy_version:
            return None
        way = _way(earlier.policy_version, there)
        return way[1:] if way and way[-1].manifest.digest == earlier.digest else None

    # -- sending -----------------------------------------------------------------------------------------------------

    def _ship_difference(self, new: Stored, earlier: Stored, since: tuple[Shipment, ...]) -> bool:
        """False where it would take too much."""
        room = int(DELTAS_SHARE * sum(new.manifest.sizes.values())) - sum(shipment.packed_bytes for shipment in since)
        chunks = list[bytes]()
        try:
            for chunk in differences(new, earlier, self._delta_chunk_bytes):
                chunks.append(chunk)
                room -= len(chunk)
                if room < 0:
                    return False
        except Malformed as damage:
            log.warning("a policy version is shipped whole", version=new.manifest.policy_version, why=str(damage))
            return False
        base = Base(policy_version=earlier.manifest.policy_version, digest=earlier.manifest.digest)
        self._send(new.manifest, self._delta_chunk_bytes, base, chunks)
        return True

    def _send(self, manifest: Manifest, chunk_bytes: int, base: Base | None, chunks: Iterable[bytes]) -> None:
        new = Shipment(
            schema_version=2,
            name=uuid.uuid4().hex,
            chunk_bytes=chunk_bytes,
            packed_bytes=0,
            manifest=manifest,
            base=base,
        )
        replaced = self._known(new.field)
        try:
            new = self._sent(new, chunks)
        except Exception:
            with contextlib.suppress(redis.RedisError, Fenced, Behind):  # the next writer sweeps
                self._clear(new.name, new.chunks)
            raise
        prefix = self._keys.weight_chunk(new.name, "")
        appears = [new.name, new.chunks, prefix, new.field, new.model_dump_json(), *replaced]
        self._must(self._appear, [self._keys.shipments, self._keys.weights], appears)
        reached("freight.appeared")
        if replaced[0]:
            self._clear(*replaced)

    def _sent(self, new: Shipment, chunks: Iterable[bytes]) -> Shipment:
        packed = 0
        for number, chunk in enumerate(chunks):
            keys = [self._keys.shipments, self._keys.weight_chunk(new.name, number), self._keys.weights]
            self._must(self._store, keys, [new.name, new.chunks, chunk, new.field])
            packed += len(chunk)
            reached("freight.chunk")
        return new.model_copy(update={"packed_bytes": packed})

    # -- removing ----------------------------------------------------------------------------------------------------

    def _retire_others(self, of: Manifest) -> None:
        """What the version was before it was replaced."""
        for whole in (True, False):
            name = field(of.policy_version, whole)
            raw: Any = self._redis.hget(self._keys.weights, name)
            if raw is not None and not _is(raw, of):
                self._retire_field(name)

    def _retire_field(self, name: str) -> None:
        shipment, chunks = self._known(name)
        self._must(self._retire, [self._keys.shipments, self._keys.weights], [shipment, chunks, name])
        reached("freight.retired")
        self._clear(shipment, chunks)

    def _clear(self, name: str, chunks: int) -> None:
        for start in range(0, max(1, chunks), AT_ONCE):
            end = min(chunks, start + AT_ONCE)
            prefix, last = self._keys.weight_chunk(name, ""), int(end == chunks)
            self._must(self._remove, [self._keys.shipments], [name, start, end, prefix, last])

    def _known(self, name: str) -> tuple[str, int]:
        """Name and number of chunks of a field; of a shipment that cannot be read, as many as are there."""
        raw: Any = self._redis.hget(self._keys.weights, name)
        found = NAME.search(raw or b"")
        if found is None:
            return "", 0
        shipment = found[1].decode()
        with contextlib.suppress(ValueError):
            return shipment, Shipment.model_validate_json(raw).chunks
        missing = (n for n in itertools.count() if not self._redis.exists(self._keys.weight_chunk(shipment, n)))
        return shipment, next(missing)

    def _must(self, script: Any, keys: list[str], arguments: list[Any]) -> None:
        if not script([self._keys.writer, *keys], [self._fence.mark.owner, *arguments]):
            self._fence.check()
            raise Behind("Redis has lost a part of a policy version that was being uploaded")


def _way(version: int, there: Mapping[str, Shipment]) -> tuple[Shipment, ...]:
    """Of a late reader, () if there is none."""
    try:
        return route(version, lambda at, whole: there.get(field(at, whole))).shipments
    except FileNotFoundError:
        return ()


def _is(raw: bytes, manifest: Manifest) -> bool:
    with contextlib.suppress(ValueError):
        return Shipment.model_validate_json(raw).manifest == manifest
    return False
