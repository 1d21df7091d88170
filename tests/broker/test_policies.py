"""Weights through Redis alone: whole or not at all, bit for bit, within a bound, whoever dies and whatever is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_library
import zstandard

from broker import fetcher as fetcher_module
from broker import shipper as shipper_module
from broker.embedded import EmbeddedServer
from broker.errors import Behind, Fenced, Malformed, Refused
from broker.fence import Fence
from broker.freight import Freight
from broker.keys import Keys
from broker.policies import FetchingReader, ShippingStore
from broker.scratch import Scratch
from broker.shipment import decode_chunk, version_of
from broker.shipper import Shipper
from tests.clock import Clock
from tests.system.pipeline import wait_until

LEASE_SECONDS = 30.0
ROOT = Path(shipper_module.__file__).parents[1]
SMALL = 1 << 10  # bytes of a chunk in these tests: a version has several


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Shipper.__init__, "__defaults__", (1, SMALL, SMALL))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def clock() -> Clock:
    return Clock(1_764_000_000.25)


@pytest.fixture
def fence(redis: redis_library.Redis, keys: Keys) -> Fence:
    fence = Fence(redis, keys)
    fence.take_over()
    return fence


@pytest.fixture
def store(redis: redis_library.Redis, keys: Keys, tmp_path: Path, fence: Fence, clock: Clock) -> ShippingStore:
    return ShippingStore(redis, keys, tmp_path / "policy", 2, LEASE_SECONDS, fence, clock=clock)


@pytest.fixture
def reader(redis: redis_library.Redis, keys: Keys, clock: Clock) -> Iterator[FetchingReader]:
    reader = FetchingReader(redis, keys, LEASE_SECONDS, clock)
    yield reader
    reader.close()


def weights(seed: int) -> Callable[[Path], None]:
    """Several chunks that do not compress, one file that does, one that is empty, one in a folder."""

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(np.random.default_rng(seed).bytes(5 * SMALL + 7))
        (folder / "config.json").write_text(json.dumps({"seed": seed, "zeros": [0] * SMALL}))
        (folder / "empty").touch()
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocabulary.txt").write_text("a\nb\n")

    return fill


def publish(store: ShippingStore, redis: redis_library.Redis, *versions: int) -> None:
    for version in versions:
        store.write(version, weights(version))
        point(store, redis, version)


def point(store: ShippingStore, redis: redis_library.Redis, version: int) -> None:
    with redis.pipeline() as pipe:
        store.point(pipe, version)
        pipe.execute()


def content(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json"}


def versions(redis: redis_library.Redis, keys: Keys) -> set[int | None]:
    names: Any = redis.hkeys(keys.weights)
    return set(map(version_of, names))


def chunks_of(redis: redis_library.Redis, keys: Keys, *of: int) -> int:
    found = [Freight(redis, keys).shipment(version) for version in of]
    return sum(shipment.chunks for shipment in found if shipment is not None)


def chunks(redis: redis_library.Redis, keys: Keys) -> list[bytes]:
    found: Any = redis.keys(keys.weight_chunk("*", "*"))
    return sorted(found)


# -- there and back ---------------------------------------------------------------------------------------------------


def test_what_was_written_is_fetched_bit_for_bit(store: ShippingStore, reader: FetchingReader) -> None:
    written = store.write(7, weights(7))
    fetched = reader.open(7)
    assert fetched != written
    assert content(fetched) == content(written)
    assert sorted(content(fetched)) == ["config.json", "empty", "model.safetensors", "tokenizer/vocabulary.txt"]


def test_the_same_again_is_shipped_once(store: ShippingStore, redis: redis_library.Redis, keys: Keys) -> None:
    store.write(7, weights(7))
    before = chunks(redis, keys)
    store.write(7, weights(7))
    store.open(7)
    assert chunks(redis, keys) == before


def test_another_content_replaces_an_upload_that_nobody_was_told_of(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0)
    store.write(1, weights(1))
    count = len(chunks(redis, keys))
    written = store.write(1, weights(99), replace=True)
    assert content(reader.open(1)) == content(written)
    assert len(chunks(redis, keys)) == count
    assert redis.hlen(keys.shipments) == 0


def test_a_number_is_never_used_for_another_content(store: ShippingStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 1)
    with pytest.raises(Refused, match="another content"):
        store.write(1, weights(2), replace=True)


def test_what_is_not_there_is_said_to_be_not_there(reader: FetchingReader) -> None:
    with pytest.raises(FileNotFoundError, match="policy version 3"):
        reader.open(3)


def test_a_reader_keeps_what_it_has_loaded_and_what_it_opened_last(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis
) -> None:
    publish(store, redis, 0, 1, 2)
    first = reader.open(0)
    reader.loaded(0)
    second = reader.open(1)
    assert first.is_dir(), "it can be put back"
    third = reader.open(2)
    assert (first.is_dir(), second.exists(), third.is_dir()) == (True, False, True)
    reader.loaded(2)
    assert (first.exists(), third.is_dir()) == (False, True)


def test_a_copy_that_was_damaged_is_fetched_again(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis
) -> None:
    publish(store, redis, 0)
    folder = reader.open(0)
    reader.loaded(0)
    (folder / "config.json").write_text("{}")
    assert content(reader.open(0)) == content(store.path(0))


# -- damage in Redis --------------------------------------------------------------------------------------------------


def shipped(redis: redis_library.Redis, keys: Keys, version: int = 0) -> dict[str, Any]:
    raw: Any = redis.hget(keys.weights, str(version))
    found: dict[str, Any] = json.loads(raw)
    return found


def flip(redis: redis_library.Redis, keys: Keys) -> None:
    key = keys.weight_chunk(shipped(redis, keys)["name"], 3)
    raw: Any = redis.get(key)
    redis.set(key, raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:])


def swap(redis: redis_library.Redis, keys: Keys) -> None:
    one, other = (keys.weight_chunk(shipped(redis, keys)["name"], number) for number in (3, 4))
    a, b = redis.get(one), redis.get(other)
    redis.set(one, b)  # type: ignore[arg-type]
    redis.set(other, a)  # type: ignore[arg-type]


def no_frame(redis: redis_library.Redis, keys: Keys) -> None:
    redis.set(keys.weight_chunk(shipped(redis, keys)["name"], 3), b"not zstd")


def bomb(redis: redis_library.Redis, keys: Keys) -> None:
    raw = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    redis.set(keys.weight_chunk(shipped(redis, keys)["name"], 3), raw)


def no_document(redis: redis_library.Redis, keys: Keys) -> None:
    redis.hset(keys.weights, "0", b"\xff{")


def way_out(redis: redis_library.Redis, keys: Keys) -> None:
    document = shipped(redis, keys)
    files = document["manifest"]["files"]
    files["../outside"] = files.pop("empty")
    redis.hset(keys.weights, "0", json.dumps(document))


def endless(redis: redis_library.Redis, keys: Keys) -> None:
    document = shipped(redis, keys)
    document["manifest"]["files"]["empty"]["size"] = 1 << 60
    redis.hset(keys.weights, "0", json.dumps(document))


def other_version(redis: redis_library.Redis, keys: Keys) -> None:
    document = shipped(redis, keys)
    document["manifest"]["policy_version"] = 1
    redis.hset(keys.weights, "0", json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "chunk 3 of policy version 0 is damaged"),
        (swap, "policy version 0 is not what was shipped"),
        (no_frame, "chunk 3 of policy version 0 is damaged"),
        (bomb, "chunk 3 of policy version 0 is larger than it says"),
        (no_document, "shipment of policy version 0 cannot be read"),
        (way_out, "a file's name leads out of its folder"),
        (endless, "more chunks than any model has"),
        (other_version, "is another version's"),
    ],
)
def test_damage_is_found(
    store: ShippingStore,
    reader: FetchingReader,
    redis: redis_library.Redis,
    keys: Keys,
    damage: Callable[[redis_library.Redis, Keys], None],
    said: str,
) -> None:
    publish(store, redis, 0)
    damage(redis, keys)
    with pytest.raises(Malformed, match=said):
        reader.open(0)
    with pytest.raises(Malformed):
        reader.open(0)  # half a copy is none


def test_a_chunk_that_is_gone_is_a_version_that_is_gone(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0)
    redis.delete(keys.weight_chunk(shipped(redis, keys)["name"], 2))
    with pytest.raises(FileNotFoundError, match="a part of policy version 0"):
        reader.open(0)
    store.open(0)  # as a learner does that begins anew
    assert content(reader.open(0)) == content(store.path(0))


# -- pruning, and how much there can be -------------------------------------------------------------------------------


def test_what_is_pruned_leaves_redis_as_well(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2, 3)
    a_version = len(chunks(redis, keys)) // 4
    assert store.prune(protected={1}) == [0]
    assert versions(redis, keys) == {1, 2, 3}
    assert len(chunks(redis, keys)) == 3 * a_version
    with pytest.raises(FileNotFoundError):
        reader.open(0)


def test_what_is_leased_stays_while_memory_allows(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    """Twice `keep` is the most that can be there of what is older than the pointer, whoever reads."""
    for version in range(7):
        publish(store, redis, version)
        reader.lease(f"reader {version}", version)
        store.prune()
        assert redis.hlen(keys.weights) <= 2 * store.keep
    assert store.versions() == [0, 1, 5, 6], "the readers of the oldest are the furthest"
    assert content(reader.open(1)) == content(store.path(1))
    with pytest.raises(FileNotFoundError):
        reader.open(2)


def test_a_lease_is_renewed_while_its_version_is_fetched(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, redis, 0)
    reader = FetchingReader(redis, keys, LEASE_SECONDS, clock)
    reader.lease("slow", 0)
    decode = decode_chunk

    def slowly(raw: bytes, longest: int) -> bytes:
        clock.now += LEASE_SECONDS / 2
        return decode(raw, longest)

    monkeypatch.setattr(fetcher_module, "decode_chunk", slowly)
    began = clock.now
    reader.open(0)
    assert clock.now > began + 2 * LEASE_SECONDS
    publish(store, redis, 1, 2)
    assert store.prune() == [], "it is leased"
    reader.close()


def test_a_reader_that_is_closed_while_it_fetches_leaves_nothing(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, redis, 0)
    reader = FetchingReader(redis, keys, LEASE_SECONDS)
    fetching, closing = threading.Event(), threading.Event()
    decode = decode_chunk

    def wait(raw: bytes, longest: int) -> bytes:
        fetching.set()
        closing.wait(20)
        return decode(raw, longest)

    monkeypatch.setattr(fetcher_module, "decode_chunk", wait)
    with ThreadPoolExecutor(2) as pool:
        opened = pool.submit(reader.open, 0)
        assert fetching.wait(20)
        closed = pool.submit(reader.close)
        wait_until(reader._closed.is_set, "it is being closed")
        closing.set()
        closed.result(20)
        assert isinstance(opened.exception(20), InterruptedError)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_server_can_be_pruned_and_an_upload_that_it_cuts_off_leaves_nothing(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2)
    used: Any = redis.info("memory")
    before = chunks(redis, keys)
    redis.config_set("maxmemory", int(used["used_memory"]))
    try:
        with pytest.raises(redis_library.exceptions.OutOfMemoryError):
            store.write(3, lambda folder: (folder / "large").write_bytes(os.urandom(1 << 20)) and None)  # type: ignore[arg-type]
        assert chunks(redis, keys) == before
        redis.config_set("maxmemory", 1)
        assert store.prune() == [0]
        assert len(chunks(redis, keys)) < len(before)
    finally:
        redis.config_set("maxmemory", 0)


def test_a_chunk_that_was_sent_twice_and_came_late_spoils_nothing(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, fence: Fence
) -> None:
    publish(store, redis, 0)
    name = shipped(redis, keys)["name"]
    late = [keys.shipments, keys.weight_chunk(name, 0), keys.weights]
    store._freight._must(store._freight._store, late, [name, 9, b"late", 0])
    successor = Fence(redis, keys)
    successor.take_over()
    ShippingStore(redis, keys, store.directory, 2, LEASE_SECONDS, successor).write(1, weights(1))
    reader = FetchingReader(redis, keys, LEASE_SECONDS)
    assert content(reader.open(0)) == content(store.path(0))
    reader.close()


def test_a_predecessor_sweeps_nothing_any_more(store: ShippingStore, redis: redis_library.Redis, keys: Keys) -> None:
    store.write(0, weights(0))
    redis.hset(keys.shipments, "f" * 32, 2)
    redis.set(keys.weight_chunk("f" * 32, 0), b"of a successor")
    taken = Fence(redis, keys)
    taken.take_over()
    with pytest.raises(Fenced):
        store._freight.sweep()
    assert redis.exists(keys.weight_chunk("f" * 32, 0))


def test_an_older_version_that_is_damaged_stops_no_publication(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1)
    (store.path(0) / "config.json").write_text("{}")
    redis.delete(*chunks(redis, keys))
    publish(store, redis, 2)
    assert store._freight.available() == {1, 2}


def test_a_shipment_that_cannot_be_read_takes_its_chunks_with_it(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1, 2)
    raw: Any = redis.hget(keys.weights, "0")
    redis.hset(keys.weights, "0", raw.replace(b'"schema_version":2', b'"schema_version":9'))
    assert store.prune() == [0]
    assert len(chunks(redis, keys)) == chunks_of(redis, keys, 1, 2)


@pytest.mark.parametrize("moment", ["freight.retired", "freight.appeared"])
def test_what_was_given_up_and_not_yet_removed_is_swept(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Chunks of a version that is pruned, and of one that another content replaces."""
    publish(store, redis, 0, 1, 2)
    store.write(3, weights(3))

    def die(label: str) -> None:
        if label == moment:
            raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(shipper_module, "reached", die)
        with pytest.raises(InterruptedError):
            store.prune() if moment == "freight.retired" else store.write(3, weights(33), replace=True)
    assert redis.hlen(keys.shipments) == 1
    fence = Fence(redis, keys)
    fence.take_over()
    successor = ShippingStore(redis, keys, store.directory, 2, LEASE_SECONDS, fence)
    successor.write(4, weights(4))
    assert redis.hlen(keys.shipments) == 0
    assert versions(redis, keys) == set(store.versions())
    assert len(chunks(redis, keys)) == chunks_of(redis, keys, *store.versions())


# -- who dies, and what is lost ---------------------------------------------------------------------------------------


WRITER = """
import sys
from pathlib import Path
import redis
from broker.fence import Fence
from broker.keys import Keys
from broker.policies import ShippingStore
from broker.shipper import Shipper
Shipper.__init__.__defaults__ = (1, 1024, 1024)
client, keys = redis.Redis(port=int(sys.argv[1])), Keys(sys.argv[2])
fence = Fence(client, keys)
fence.take_over()
store = ShippingStore(client, keys, Path(sys.argv[3]), 2, 30.0, fence)
store.write(1, lambda folder: (folder / "w").write_bytes(bytes(range(256)) * 40))
"""


@pytest.mark.parametrize("point", ["freight.chunk:1", "freight.chunk:7", "freight.appeared:1"])
def test_a_writer_killed_at_any_moment_leaves_no_half_and_no_litter(
    redis_server: EmbeddedServer, redis: redis_library.Redis, keys: Keys, tmp_path: Path, point: str
) -> None:
    directory = tmp_path / "policy"
    command = [sys.executable, "-c", WRITER, str(redis_server.port), keys.run, str(directory)]
    killed = subprocess.run(command, env={**os.environ, "HEADRACE_POINT": f"{point}:KILL"}, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert versions(redis, keys) == ({1} if point.startswith("freight.appeared") else set())
    fence = Fence(redis, keys)
    fence.take_over()
    store = ShippingStore(redis, keys, directory, 2, LEASE_SECONDS, fence)
    store.write(2, weights(2))
    with redis.pipeline() as pipe:
        store.point(pipe, 2)  # version 1 lies in the directory: it is there again
        pipe.execute()
    reader = FetchingReader(redis, keys, LEASE_SECONDS)
    for version in (1, 2):
        assert content(reader.open(version)) == content(store.path(version))
    reader.close()
    assert redis.hlen(keys.shipments) == 0
    assert len(chunks(redis, keys)) == chunks_of(redis, keys, 1, 2)


def test_a_predecessor_that_wakes_up_changes_nothing(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, tmp_path: Path
) -> None:
    publish(store, redis, 0)
    taken = Fence(redis, keys)
    taken.take_over()
    before = redis.hgetall(keys.weights)
    with pytest.raises(Fenced):
        store.write(1, weights(1))
    assert redis.hgetall(keys.weights) == before
    assert len(chunks(redis, keys)) == chunks_of(redis, keys, 0)


def test_redis_that_forgets_in_the_middle_of_an_upload_is_noticed(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, redis, 0)

    def forget(label: str) -> None:
        if label == "freight.chunk":
            redis.delete(*chunks(redis, keys))  # its last second, of which the mark was no part

    monkeypatch.setattr(shipper_module, "reached", forget)
    with pytest.raises(Behind, match="lost a part"):
        store.write(1, weights(1))


def test_what_redis_has_forgotten_is_there_again_before_the_pointer_moves(
    store: ShippingStore, reader: FetchingReader, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 0, 1)
    redis.delete(*chunks(redis, keys), keys.weights, keys.policy)
    publish(store, redis, 2)
    for version in (0, 1, 2):
        assert content(reader.open(version)) == content(store.path(version))


def test_a_reader_while_versions_come_and_go(
    store: ShippingStore, redis: redis_library.Redis, keys: Keys, tmp_path: Path
) -> None:
    """Every folder that is handed out is one version, whole, however fast the learner prunes."""
    publish(store, redis, 0)
    over, opened, wrong = threading.Event(), [0, 0], list[str]()

    def read(number: int) -> None:
        reader = FetchingReader(redis, keys, LEASE_SECONDS)
        while not over.is_set():
            version = reader.newest() or 0
            try:
                reader.lease(f"reader {number}", version)
                found = json.loads((reader.open(version) / "config.json").read_text())["seed"]
            except FileNotFoundError:
                continue
            reader.loaded(version)
            if found != version:
                wrong.append(f"{version} holds {found}")
            opened[number] += 1
        reader.close()

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in readers:
        thread.start()
    version = 0
    while min(opened) < 20:
        version += 1
        publish(store, redis, version)
        store.prune()
    over.set()
    for thread in readers:
        thread.join()
    assert wrong == []


# -- the folder of a process ------------------------------------------------------------------------------------------


def test_folders_of_one_name_that_are_made_at_the_same_moment_are_all_there(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Scratch("run"), range(200)))
    assert all(scratch.path.is_dir() for scratch in made)
    assert len({scratch.path for scratch in made}) == 200
    for scratch in made:
        scratch.close()


def test_a_folder_of_a_process_that_was_killed_goes_with_the_next_one(tmp_path: Path) -> None:
    code = (
        "import sys, time; from broker.scratch import Scratch; s = Scratch('run'); (s.path / 'file').touch(); "
        "print(s.path, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    root = Path(shipper_module.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    alive = Scratch("run")
    assert theirs.is_dir()
    assert alive.path.is_dir()
    process.kill()
    process.wait()
    process.stdout.close()
    next_one = Scratch("run")
    assert (theirs.exists(), alive.path.is_dir()) == (False, True)
    alive.close()
    next_one.close()
    assert list((tmp_path / "tmp").iterdir()) == []
