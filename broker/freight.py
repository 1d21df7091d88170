"""The policy versions that lie as chunks in Redis, for generators that share no file system with the learner.

Invariant: a version is there from the moment its last chunk is, until it is retired; whoever follows the `route` to it
comes to the content that was shipped, or is told that there is none. Refuses to know files, and who leases what.

A version may be there whole (an anchor), as its difference from an earlier one, or as both. A reader that holds the
earlier one needs the difference alone; one that comes late takes the last anchor and every difference since.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from broker.keys import Keys
from broker.manifest import Manifest
from broker.shipment import Shipment, decode_shipment, field


@dataclass(frozen=True)
class Route:
    """To a version: from one that is `held`, or from the first of `shipments`, which is whole; the rest differ."""

    held: int | None
    shipments: tuple[Shipment, ...]

    @property
    def packed_bytes(self) -> int:
        """What travels."""
        return sum(shipment.packed_bytes for shipment in self.shipments)


Find = Callable[[int, bool], Shipment | None]  # a version, whole or as a difference


def route(version: int, find: Find, held: Manifest | None = None) -> Route:
    """The way to `version` on which the fewest bytes travel, for somebody who has the content of `held`.

    Raises `FileNotFoundError` where there is none, or not any more; and what `find` raises.
    """
    found, differences = list[Route](), tuple[Shipment, ...]()
    at, content = version, ""
    while True:
        if held is not None and at == held.policy_version and content in ("", held.digest):
            found.append(Route(at, differences))
            break
        whole = None if found else find(at, True)
        if whole is not None and content in ("", whole.manifest.digest):
            found.append(Route(None, (whole, *differences)))
        if found and (held is None or Route(at, differences).packed_bytes >= found[0].packed_bytes):
            break
        difference = find(at, False)
        if difference is None or difference.base is None or content not in ("", difference.manifest.digest):
            break
        differences = (difference, *differences)
        at, content = difference.base.policy_version, difference.base.digest
    if not found:
        raise FileNotFoundError(errno.ENOENT, f"policy version {version} is not in Redis, or not any more")
    return min(found, key=lambda way: way.packed_bytes)


class Freight:
    """Of one run."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._redis, self._keys = client, keys

    def shipment(self, version: int, whole: bool = True) -> Shipment | None:
        """What `version` consists of, whole or as a difference; None where it is not there so. Raises `Malformed`."""
        raw: Any = self._redis.hget(self._keys.weights, field(version, whole=whole))
        return None if raw is None else decode_shipment(raw, self._keys.run, version, whole=whole)

    def chunks(self, of: Shipment, numbers: range) -> list[bytes]:
        """Chunks as they lie there. Raises `FileNotFoundError`."""
        raw: Any = self._redis.mget([self._keys.weight_chunk(of.name, number) for number in numbers])
        if None in raw:
            raise FileNotFoundError(errno.ENOENT, f"a part of policy version {of.version} is not in Redis any more")
        return list(raw)
