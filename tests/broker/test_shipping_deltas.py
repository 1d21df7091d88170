"""Versions through Redis as differences: exact whichever way a reader comes, bounded, whoever is late or dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_library

from broker import shipper as shipper_module
from broker.errors import Malformed
from broker.fence import Fence
from broker.freight import Freight, Route
from broker.freight import route as way
from broker.keys import Keys
from broker.manifest import Manifest, Stored, read
from broker.policies import FetchingReader, ShippingStore
from broker.policy import PolicyStore
from broker.shipment import field
from broker.shipper import DELTAS_SHARE, Shipper
from tests.broker.test_policies import chunks, content, point

ANCHOR_EVERY = 4
NUMBERS = 40_000
CHUNK = 4096  # bytes


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Shipper.__init__, "__defaults__", (1, CHUNK, 2 * CHUNK))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def fence(redis: redis_library.Redis, keys: Keys) -> Fence:
    fence = Fence(redis, keys)
    fence.take_over()
    return fence


@pytest.fixture
def store(redis: redis_library.Redis, keys: Keys, tmp_path: Path, fence: Fence) -> ShippingStore:
    return ShippingStore(redis, keys, tmp_path / "policy", 2, 30.0, fence, ANCHOR_EVERY)


@pytest.fixture
def reader(redis: redis_library.Redis, keys: Keys) -> Iterator[FetchingReader]:
    reader = FetchingReader(redis, keys, 30.0)
    yield reader
    reader.close()


def weights(version: int, changed: float = 0.01) -> Callable[[Path], None]:
    """Of a walk: every version moves a share of the numbers of the one before to a neighbour."""

    def fill(folder: Path) -> None:
        numbers = np.random.default_rng(0).integers(0, 65536, NUMBERS).astype("<u2")
        for step in range(1, version + 1):
            chance = np.random.default_rng(step)
            numbers += (chance.random(NUMBERS) < changed).astype("<u2")
        (folder / "model.safetensors").write_bytes(numbers.tobytes() + b"odd")
        (folder / "config.json").write_text(json.dumps({"layers": 3}))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocabulary.txt").write_text("a\nb\n")

    return fill


def publish(store: ShippingStore, redis: redis_library.Redis, *versions: int, changed: float = 0.01) -> None:
    for version in versions:
        store.write(version, weights(version, changed))
        point(store, redis, version)


def fields(redis: redis_library.Redis, keys: Keys) -> set[str]:
    names: Any = redis.hkeys(keys.weights)
    return {name.decode() for name in names}


def travelled(redis: redis_library.Redis) -> int:
    """Bytes that the server has sent so far."""
    info: Any = redis.info("stats")
    return int(info["total_net_output_bytes"])


def route(redis: redis_library.Redis, keys: Keys, version: int, held: Manifest | None = None) -> Route:
    return way(version, Freight(redis, keys).shipment, held)


def load(reader: FetchingReader, version: int) -> Path:
    folder = reader.open(version)
    reader.loaded(version)
    return folder


def test_between_two_anchors_only_differences_travel(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, *range(9))
    whole = {"0", "4", "8"}
    assert fields(redis, keys) == whole | {f"{version}.delta" for version in range(1, 9)}
    size = store.path(8).joinpath("model.safetensors").stat().st_size
    for version in range(9):
        before = travelled(redis)
        assert content(load(reader, version)) == content(store.path(version)), version
        sent = travelled(redis) - before
        assert sent < (0.1 * size if version else 1.1 * size), "an anchor is for those who come late"


def test_whoever_comes_late_takes_the_last_anchor_and_what_came_after(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, *range(7))
    found = route(redis, keys, 6)
    assert (found.held, [shipment.field for shipment in found.shipments]) == (None, ["4", "5.delta", "6.delta"])
    assert content(load(reader, 6)) == content(store.path(6))


def test_whoever_fell_behind_takes_all_differences_or_the_anchor_whichever_is_less(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, *range(4))
    held = Stored(store.path(1), read(store.path(1), keys.run, 1)).manifest
    assert [s.field for s in route(redis, keys, 3, held).shipments] == ["2.delta", "3.delta"]
    publish(store, redis, *range(4, 7))
    assert [s.field for s in route(redis, keys, 6, held).shipments] == [f"{v}.delta" for v in range(2, 7)]
    other = held.model_copy(update={"files": {}})
    assert route(redis, keys, 6, other).shipments[0].field == "4", "of that number, and another content"


def test_back_to_an_older_version(store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis) -> None:
    publish(store, redis, *range(4))
    load(reader, 3)
    assert content(load(reader, 1)) == content(store.path(1))


def test_what_is_held_and_damaged_is_not_built_upon(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis
) -> None:
    publish(store, redis, 0, 1, 2)
    folder = load(reader, 1)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"garbage")
    assert content(load(reader, 2)) == content(store.path(2))
    publish(store, redis, 3)
    (reader.open(2) / "config.json").unlink()
    assert content(load(reader, 3)) == content(store.path(3))


def test_an_earlier_version_that_is_damaged_on_disk_is_not_differed_from(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1)
    with (store.path(1) / "model.safetensors").open("r+b") as file:
        file.write(b"garbage")
    store.write(2, weights(2))
    assert "2" in fields(redis, keys)
    assert "2.delta" not in fields(redis, keys)
    (store.path(2) / "manifest.json").write_text("{}")
    store.write(3, weights(3))
    assert content(reader.open(3)) == content(store.path(3))


def test_a_large_difference_is_not_worth_it(store: ShippingStore, redis: redis_library.Redis, keys: Keys) -> None:
    publish(store, redis, 0, 1)
    store.write(2, lambda folder: _random(folder, np.random.default_rng(1)))
    assert fields(redis, keys) == {"0", "1.delta", "2"}


def test_differences_since_an_anchor_take_a_quarter_of_a_whole_one_at_most(
    redis: redis_library.Redis, keys: Keys, tmp_path: Path, fence: Fence
) -> None:
    store = ShippingStore(redis, keys, tmp_path / "policy", 50, 30.0, fence, 100)
    numbers, chance, since = np.zeros(NUMBERS, "<u2"), np.random.default_rng(0), 0
    for version in range(12):
        numbers[chance.random(NUMBERS) < 0.05] = chance.integers(65536)
        now = numbers.tobytes()
        store.write(version, lambda folder, now=now: (folder / "w").write_bytes(now) and None)  # type: ignore[misc]
        whole, difference = (store._freight.shipment(version, whole=kind) for kind in (True, False))
        since = 0 if whole is not None else since + (difference.packed_bytes if difference else 0)
        assert since <= DELTAS_SHARE * len(now)
    assert 2 <= len([name for name in fields(redis, keys) if not name.endswith("delta")]) < 12


def _random(folder: Path, chance: np.random.Generator) -> None:
    weights(3, 0.0)(folder)
    (folder / "model.safetensors").write_bytes(chance.bytes(2 * NUMBERS + 3))


def test_what_a_route_depends_on_outlives_its_version(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    for version in range(7):
        publish(store, redis, version)
        store.prune()
    assert store.versions() == [5, 6]
    assert fields(redis, keys) == {"4", "5.delta", "6.delta"}
    assert content(load(reader, 6)) == content(store.path(6))
    publish(store, redis, 7, 8, 9)
    store.prune()
    assert fields(redis, keys) == {"8", "8.delta", "9.delta"}
    assert content(load(reader, 9)) == content(store.path(9)), "from an anchor, what was held is too old"
    expected = sum(s.chunks for s in map(store._freight.shipment, [8]) if s is not None)
    expected += sum(s.chunks for v in (8, 9) if (s := store._freight.shipment(v, whole=False)) is not None)
    assert len(chunks(redis, keys)) == expected


def test_a_leased_version_keeps_its_route(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2)
    reader.lease("slow", 2)
    publish(store, redis, *range(3, 10))
    store.prune()
    assert {"0", "1.delta", "2.delta"} <= fields(redis, keys)
    assert content(reader.open(2)) == content(store.path(2))


def test_another_content_of_an_unpublished_number_replaces_all_of_it(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2, 3)
    store.write(4, weights(4))
    assert {"4", "4.delta"} <= fields(redis, keys)
    written = store.write(4, weights(4, changed=0.02), replace=True)
    assert content(reader.open(4)) == content(written)
    for whole in (True, False):
        found = store._freight.shipment(4, whole=whole)
        assert found is None or found.manifest == read(written, keys.run, 4)
    store.write(4, lambda folder: _random(folder, np.random.default_rng(5)), replace=True)
    assert "4.delta" not in fields(redis, keys)
    late = FetchingReader(redis, keys, 30.0)
    assert content(late.open(4)) == content(store.path(4))
    late.close()
    assert redis.hlen(keys.shipments) == 0


def test_a_link_that_redis_has_lost_is_made_whole_before_the_pointer_moves(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2)
    lost = store._freight.shipment(1, whole=False)
    assert lost is not None
    redis.delete(keys.weight_chunk(lost.name, 0))
    assert store._freight.available() == {0}
    publish(store, redis, 3)
    assert store._freight.available() == {0, 1, 2, 3}
    for version in range(4):
        assert content(reader.open(version)) == content(store.path(version))


def test_after_a_loss_of_everything(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2)
    redis.delete(*chunks(redis, keys), keys.weights, keys.policy)
    publish(store, redis, 3)
    for version in range(4):
        assert content(reader.open(version)) == content(store.path(version))


@pytest.mark.parametrize("number", range(6))
def test_a_writer_that_dies_anywhere_leaves_nothing_half(
    store: ShippingStore,
    redis: redis_library.Redis,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """While it ships the difference of an anchor, between that and the whole, and while it ships that."""
    publish(store, redis, 0, 1, 2, 3)
    left = [3 * number]

    def die(label: str) -> None:
        if label.startswith("freight."):
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(shipper_module, "reached", die)
        patched.setattr(Shipper, "_clear", lambda *_: None)
        with pytest.raises(InterruptedError):
            store.write(4, weights(4))
    fence = Fence(redis, keys)
    fence.take_over()
    successor = ShippingStore(redis, keys, store.directory, 2, 30.0, fence, ANCHOR_EVERY)
    successor.write(4, weights(4))
    assert redis.hlen(keys.shipments) == 0
    reader = FetchingReader(redis, keys, 30.0)
    assert content(reader.open(4)) == content(successor.path(4))
    reader.close()
    shipments = [successor._freight.shipment(v, whole=w) for v in range(5) for w in (True, False)]
    assert len(chunks(redis, keys)) == sum(shipment.chunks for shipment in shipments if shipment is not None)


def test_a_shipment_that_differs_from_a_later_one_is_none(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1)
    raw: Any = redis.hget(keys.weights, field(1, False))
    document = json.loads(raw)
    document["base"]["policy_version"] = 1
    redis.hset(keys.weights, field(1, False), json.dumps(document))
    with pytest.raises(Malformed, match="came later"):
        route(redis, keys, 1)


def test_a_whole_version_of_another_content_is_no_way_to_what_differs_from_it(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, tmp_path: Path
) -> None:
    publish(store, redis, 0, 1)
    raw: Any = redis.hget(keys.weights, "0")
    document = json.loads(raw)
    document["manifest"]["files"]["config.json"]["sha256"] = "0" * 64
    redis.hset(keys.weights, "0", json.dumps(document))
    with pytest.raises(FileNotFoundError):
        route(redis, keys, 1)


def test_nothing_differs_from_a_version_that_redis_knows_with_another_content(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0)
    store.write(1, weights(1))
    PolicyStore(redis, keys, store.directory, 2, 30.0).write(1, weights(2), replace=True)  # not shipped: it died there
    store.write(2, weights(3))
    assert "2" in fields(redis, keys)
    assert content(reader.open(2)) == content(store.path(2))
