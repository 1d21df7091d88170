"""Weights appear whole or not at all, are never changed, and are never pulled away from a reader that leased them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_library
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from broker import manifest as manifest_module
from broker import policy as policy_module
from broker import policy_reader
from broker.embedded import EmbeddedServer
from broker.errors import Fenced, Malformed, Refused
from broker.keys import Keys
from broker.manifest import NAME as MANIFEST
from broker.policy import PolicyStore
from tests.clock import Clock

ROOT = Path(policy_module.__file__).parents[1]
LEASE_SECONDS = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1_764_000_000.25)


@pytest.fixture
def store(redis: redis_library.Redis, keys: Keys, tmp_path: Path, clock: Clock) -> PolicyStore:
    return PolicyStore(redis, keys, tmp_path / "policy", keep=2, lease_seconds=LEASE_SECONDS, clock=clock)


def weights(seed: int) -> Callable[[Path], None]:
    """What a learner writes: tensors, a configuration, something in a sub-folder."""

    def fill(folder: Path) -> None:
        numbers = np.random.default_rng(seed).standard_normal((8, 8), np.float32)
        save_file({"w": numbers}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"seed": seed}))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocabulary.txt").write_text("a\nb\n")

    return fill


def publish(store: PolicyStore, redis: redis_library.Redis, *versions: int) -> None:
    for version in versions:
        store.write(version, weights(version))
        with redis.pipeline() as pipe:
            store.point(pipe, version)
            pipe.execute()


def leftovers(store: PolicyStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir() if not path.name.startswith(("v", ".run", ".used")))


# -- writing and reading ----------------------------------------------------------------------------------------------


def test_what_was_written_can_be_opened(store: PolicyStore) -> None:
    folder = store.write(7, weights(7))
    assert folder.name == "v00000007"
    assert store.open(7) == folder
    expected = np.random.default_rng(7).standard_normal((8, 8), np.float32)
    np.testing.assert_array_equal(load_file(folder / "model.safetensors")["w"], expected)
    assert leftovers(store) == []


def test_the_manifest_names_run_version_and_every_file(store: PolicyStore, keys: Keys) -> None:
    manifest = json.loads((store.write(7, weights(7)) / MANIFEST).read_text())
    assert (manifest["schema_version"], manifest["run"], manifest["policy_version"]) == (1, keys.run, 7)
    assert list(manifest["files"]) == ["config.json", "model.safetensors", "tokenizer/vocabulary.txt"]
    assert manifest["files"]["tokenizer/vocabulary.txt"]["size"] == 4


def test_nothing_is_newest_before_the_first_publication(store: PolicyStore) -> None:
    store.write(0, weights(0))
    assert store.newest() is None
    assert store.versions() == [0]
    assert store.prune() == []


def test_before_anything_was_written_there_is_nothing(store: PolicyStore) -> None:
    assert store.versions() == []
    assert store.prune() == []
    with pytest.raises(FileNotFoundError, match="policy version is not there"):
        store.open(0)


def test_the_pointer_moves_with_its_transaction(store: PolicyStore, redis: redis_library.Redis) -> None:
    store.write(3, weights(3))
    pipe = redis.pipeline()
    store.point(pipe, 3)
    assert store.newest() is None
    pipe.execute()
    assert store.newest() == 3


def test_the_pointer_cannot_name_what_is_not_there(store: PolicyStore, redis: redis_library.Redis) -> None:
    (store.directory / "v00000003").mkdir(parents=True)
    with redis.pipeline() as pipe:
        for version in (3, 4):
            with pytest.raises(FileNotFoundError, match=f"policy version {version} is not complete"):
                store.point(pipe, version)
        assert pipe.execute() == []
    assert store.newest() is None


def test_the_same_content_again_is_the_same_version(store: PolicyStore) -> None:
    first = store.write(1, weights(1))
    inode = (first / "model.safetensors").stat().st_ino
    assert store.write(1, weights(1)) == first
    assert (first / "model.safetensors").stat().st_ino == inode
    assert leftovers(store) == []


def test_a_number_is_never_used_for_another_content(store: PolicyStore) -> None:
    before = (store.write(1, weights(1)) / "model.safetensors").read_bytes()
    with pytest.raises(Refused, match=r"policy version 1 exists in .* with another content"):
        store.write(1, weights(2))
    assert (store.open(1) / "model.safetensors").read_bytes() == before
    assert leftovers(store) == []


def test_an_upload_that_nobody_was_told_of_can_be_replaced(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0)
    store.write(1, weights(1))
    folder = store.write(1, weights(2), replace=True)
    assert json.loads((folder / "config.json").read_text()) == {"seed": 2}
    assert store.open(1) == folder


def test_a_published_version_cannot_be_replaced(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1)
    for version in (0, 1):
        with pytest.raises(Refused, match="with another content"):
            store.write(version, weights(9), replace=True)


def test_a_damaged_version_is_written_again(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1)
    (store.path(1) / "config.json").unlink()
    store.write(1, weights(1))
    assert store.open(1)
    assert leftovers(store) != []  # what it replaced, which the next write sweeps
    store.write(2, weights(2))
    assert leftovers(store) == []


def test_two_runs_in_one_directory_are_refused(store: PolicyStore, redis: redis_library.Redis) -> None:
    store.write(0, weights(0))
    stranger = PolicyStore(redis, Keys("other"), store.directory, 2, LEASE_SECONDS)
    with pytest.raises(Refused, match=r"holds the policy of run .*: give each run its own policy\.directory"):
        stranger.write(1, weights(1))
    with pytest.raises(Malformed, match="of run"):
        stranger.open(0)


# -- damage -----------------------------------------------------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def remove(folder: Path) -> None:
    (folder / "tokenizer" / "vocabulary.txt").unlink()


def add(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def link(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder.parent / "elsewhere.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncate_the_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 50)


def empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"")


def swap(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"policy_version": 4}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def speak_another_language(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"schema_version": 2}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "model.safetensors is not what was written"),
        (truncate, "model.safetensors has 100 bytes instead of"),
        (remove, "missing or not its own: tokenizer/vocabulary.txt"),
        (add, "missing or not its own: pytorch_model.bin"),
        (link, "config.json is a link"),
        (remove_the_manifest, "has no manifest.json"),
        (truncate_the_manifest, "is not a manifest"),
        (empty_the_manifest, "is not a manifest"),
        (swap, "is of version 4 of run"),
        (speak_another_language, "is not a manifest"),
    ],
)
def test_damage_is_found_and_named(store: PolicyStore, damage: Callable[[Path], None], said: str) -> None:
    damage(store.write(3, weights(3)))
    with pytest.raises(Malformed, match=said):
        store.open(3)


# -- crashes and full disks -------------------------------------------------------------------------------------------


def fail_half_way(folder: Path) -> None:
    weights(1)(folder)
    raise RuntimeError("the learner broke")


def test_a_fill_that_fails_leaves_nothing(store: PolicyStore) -> None:
    with pytest.raises(RuntimeError, match="the learner broke"):
        store.write(1, fail_half_way)
    assert store.versions() == []
    assert leftovers(store) == []
    store.write(1, weights(1))


def test_a_fill_that_writes_nothing_is_an_error(store: PolicyStore) -> None:
    with pytest.raises(ValueError, match="nothing was written"):
        store.write(1, lambda folder: None)
    assert leftovers(store) == []


def write_to_a_full_disk(folder: Path) -> None:
    Path("/dev/full").write_bytes(b"weights")


def save_to_a_full_disk(folder: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fill", [write_to_a_full_disk, save_to_a_full_disk])
def test_a_full_disk_is_named(store: PolicyStore, fill: Callable[[Path], None]) -> None:
    with pytest.raises(OSError, match="no space left for policy version 5") as caught:
        store.write(5, fill)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(store.directory)
    assert leftovers(store) == []


WRITER = """
import os, sys
from pathlib import Path
import broker.policy
from broker.connection import connect
from broker.keys import Keys
from broker.settings import BrokerSettings

url, run, directory, moment = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), 9)

def fill(folder):
    (folder / "model.safetensors").write_bytes(b"half of it")
    if moment == "in fill":
        die()
    (folder / "config.json").write_text("{}")

if moment == "before the manifest":
    broker.policy.seal = die
if moment == "before the rename":
    Path.rename = die
if moment == "before the pointer":
    broker.policy.flush = die
client = connect(BrokerSettings(), url)
broker.policy.PolicyStore(client, Keys(run), Path(directory), 2, 30.0).write(1, fill)
"""


@pytest.mark.parametrize("moment", ["in fill", "before the manifest", "before the rename", "before the pointer"])
def test_a_writer_killed_at_any_moment_leaves_a_usable_store(
    store: PolicyStore, redis: redis_library.Redis, redis_server: EmbeddedServer, keys: Keys, moment: str
) -> None:
    publish(store, redis, 0)
    command = [sys.executable, "-c", WRITER, redis_server.url, keys.run, str(store.directory), moment]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    assert store.newest() == 0
    assert store.open(0)
    assert store.versions() == ([0, 1] if moment == "before the pointer" else [0])
    assert leftovers(store) or moment == "before the pointer"
    assert store.prune() == []  # what is above the pointer is not its business

    PolicyStore(redis, keys, store.directory, 2, LEASE_SECONDS).write(1, weights(1), replace=True)
    publish(store, redis, 1)
    assert store.newest() == 1
    assert json.loads((store.open(1) / "config.json").read_text()) == {"seed": 1}
    store.prune()
    assert leftovers(store) == []


def test_a_predecessor_s_upload_fails_once_its_successor_has_begun(
    store: PolicyStore, redis: redis_library.Redis, keys: Keys
) -> None:
    store.write(0, weights(0))
    successor = PolicyStore(redis, keys, store.directory, 2, LEASE_SECONDS)

    def fill(folder: Path) -> None:
        weights(1)(folder)
        successor.write(1, weights(2))

    with pytest.raises(Fenced):
        store.write(1, fill)
    assert json.loads((store.open(1) / "config.json").read_text()) == {"seed": 2}
    assert leftovers(store) == []


def test_a_predecessor_that_wakes_up_does_not_disturb_its_successor(
    store: PolicyStore, redis: redis_library.Redis, keys: Keys
) -> None:
    store.write(0, weights(0))

    def fill(folder: Path) -> None:
        weights(2)(folder)
        store.write(1, weights(1))

    PolicyStore(redis, keys, store.directory, 2, LEASE_SECONDS).write(2, fill)
    assert store.versions() == [0, 1, 2]


# -- leases and pruning -----------------------------------------------------------------------------------------------


def test_the_newest_stay(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1, 2, 3, 4)
    assert store.prune() == [0, 1, 2]
    assert store.versions() == [3, 4]
    assert store.prune() == []
    assert leftovers(store) == []


def test_what_is_above_the_pointer_stays(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1)
    for version in (2, 3, 4):
        store.write(version, weights(version))
    assert store.prune() == []
    assert store.versions() == [0, 1, 2, 3, 4]


def test_the_protected_stay(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, *range(6))
    assert store.prune({0, 2}) == [1, 3]
    assert store.versions() == [0, 2, 4, 5]


def test_what_is_leased_stays_until_it_is_released(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1, 2, 3)
    store.lease("g1", 0)
    assert store.prune() == [1]
    store.release("g1")
    assert store.prune() == [0]


def test_a_dead_reader_s_lease_lapses(store: PolicyStore, redis: redis_library.Redis, keys: Keys, clock: Clock) -> None:
    publish(store, redis, 0, 1, 2)
    store.lease("g1", 0)
    clock.now += LEASE_SECONDS - 1
    assert store.prune() == []
    store.lease("g1", 0)  # renewed
    clock.now += LEASE_SECONDS - 1
    assert store.prune() == []
    clock.now += 2
    assert store.prune() == [0]
    assert redis.hgetall(keys.policy_leases) == {}


def test_a_reader_holds_one_version_at_a_time(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1, 2, 3)
    store.lease("g1", 0)
    store.lease("g1", 1)
    assert store.prune() == [0]


def test_what_is_being_pruned_cannot_be_leased(
    store: PolicyStore, redis: redis_library.Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pruner has looked at the leases and is about to remove version 0: a reader that comes now is too late."""
    publish(store, redis, 0, 1, 2)

    def meanwhile(path: Path, target: Path) -> Path:
        with pytest.raises(FileNotFoundError, match="policy version 0 is being pruned"):
            store.lease("g1", 0)
        store.lease("g2", 1)
        raise InterruptedError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", meanwhile)
        with pytest.raises(InterruptedError):
            store.prune()
    clock.now += policy_module.PRUNING_SECONDS + 1
    store.lease("g1", 0)  # a pruner that died there holds it for a while only
    assert store.open(0)


def test_a_reader_without_a_lease_is_told_that_it_is_gone(
    store: PolicyStore, redis: redis_library.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, redis, 0, 1, 2)

    def slow_read(*args: Any) -> Any:
        store.prune()
        return manifest_module.read(*args)

    monkeypatch.setattr(policy_module, "read", slow_read)
    with pytest.raises(FileNotFoundError, match="not there, or not any more"):
        store.open(0)


def test_readers_and_pruner_at_full_speed(store: PolicyStore, redis: redis_library.Redis) -> None:
    """Whoever leased and opened a version can read every file of it until the release, whatever the pruner does."""
    publish(store, redis, 0)
    stop, failures, loads = threading.Event(), [], [0, 0, 0]

    def newest() -> int:
        return store.newest() or 0

    def read(number: int) -> None:
        while not stop.is_set():
            version = max(0, newest() - 1 - number)  # for the last of the readers it is being pruned just now
            try:
                store.lease(f"g{number}", version)
                folder = store.open(version)
            except FileNotFoundError:
                continue
            try:
                while newest() < version + 5 and not stop.is_set():  # until it would have been pruned long ago
                    load_file(folder / "model.safetensors")
                load_file(folder / "model.safetensors")
                loads[number] += 1
            except OSError as error:
                failures.append(error)
            store.release(f"g{number}")

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for reader in readers:
        reader.start()
    removed = []
    for version in range(1, 40):
        publish(store, redis, version)
        removed += store.prune()
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert sum(loads) > 0
    removed += store.prune()
    assert sorted(removed + store.versions()) == list(range(40))
    assert store.versions() == [38, 39]


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_a_newer_version_is_returned_at_once(store: PolicyStore, redis: redis_library.Redis) -> None:
    publish(store, redis, 0, 1)
    assert store.wait(held=0, timeout=0) == 1
    assert store.wait(held=-1, timeout=0) == 1


def test_an_older_version_is_returned_where_the_run_was_taken_back(
    store: PolicyStore, redis: redis_library.Redis
) -> None:
    publish(store, redis, 0, 1)
    assert store.wait(held=7, timeout=0) == 1


def test_waiting_in_vain_ends(store: PolicyStore, redis: redis_library.Redis) -> None:
    assert store.wait(held=-1, timeout=0.05) is None
    publish(store, redis, 1)
    assert store.wait(held=1, timeout=0.05) is None


def waiting(store: PolicyStore, held: int) -> tuple[threading.Thread, list[int | None]]:
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(store.wait(held, 10.0)))
    thread.start()
    return thread, found


def until_somebody_listens(redis: redis_library.Redis, channel: str) -> None:
    while redis.pubsub_numsub(channel) != [(channel.encode(), 1)]:
        assert threading.active_count() > 1


def test_a_publication_wakes_a_reader(
    store: PolicyStore, redis: redis_library.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_reader, "POLL_SECONDS", 60.0)  # so that only the message can have woken it
    publish(store, redis, 0)
    reader, found = waiting(store, held=0)
    until_somebody_listens(redis, keys.policy)
    publish(store, redis, 1)
    reader.join(5.0)
    assert found == [1]


def test_a_lost_message_costs_the_poll_interval_only(
    store: PolicyStore, redis: redis_library.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_reader, "POLL_SECONDS", 0.1)
    reader, found = waiting(store, held=0)
    until_somebody_listens(redis, keys.policy)
    redis.set(keys.policy, 1)
    before = time.monotonic()
    reader.join(5.0)
    assert found == [1]
    assert time.monotonic() - before < 2.0


def test_a_message_about_an_old_version_wakes_nobody(
    store: PolicyStore, redis: redis_library.Redis, keys: Keys
) -> None:
    publish(store, redis, 3)
    reader, found = waiting(store, held=3)
    until_somebody_listens(redis, keys.policy)
    redis.publish(keys.policy, 2)
    redis.publish(keys.policy, b"nonsense")
    publish(store, redis, 4)
    reader.join(5.0)
    assert found == [4]
