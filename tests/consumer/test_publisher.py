"""Publishing: the commit comes after the upload, in order, and what goes wrong is heard of."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from broker.keys import Keys
from broker.policy import PolicyStore
from consumer.publisher import Publisher
from monitoring.metrics import LearnerMetrics


@pytest.fixture
def policy(redis: redis.Redis, keys: Keys, tmp_path: Path) -> PolicyStore:
    return PolicyStore(redis, keys, tmp_path, keep=2, lease_seconds=60.0)


@pytest.fixture
def publisher(policy: PolicyStore) -> Iterator[Publisher]:
    made = Publisher(policy, lambda: {1}, LearnerMetrics(), retry_seconds=0.01)
    yield made
    made.close()


def weights(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return fill


def test_the_commit_finds_the_version_complete_and_comes_before_join_returns(
    policy: PolicyStore, publisher: Publisher
) -> None:
    seen: list[str] = []
    publisher.publish(3, weights("three"), lambda: seen.append((policy.open(3) / "weights").read_text()))
    assert publisher.join() > 0
    assert seen == ["three"]
    assert publisher.join() == 0.0, "nothing is under way"


def test_the_learner_goes_on_while_weights_are_on_their_way(policy: PolicyStore, publisher: Publisher) -> None:
    go_on, done = threading.Event(), list[str]()

    def slow(folder: Path) -> None:
        assert go_on.wait(30), "publish must not wait for the upload"
        weights("slow")(folder)

    publisher.publish(1, slow, lambda: done.append("committed"))
    publisher.check()
    assert done == []
    go_on.set()
    publisher.join()
    assert done == ["committed"]


def test_publications_happen_in_order_one_at_a_time(publisher: Publisher) -> None:
    order: list[int] = []
    for version in (1, 2, 3):
        publisher.publish(version, weights(str(version)), lambda v=version: order.append(v))  # type: ignore[misc]
    publisher.join()
    assert order == [1, 2, 3]


def test_an_upload_that_fails_commits_nothing_and_is_raised_at_join(policy: PolicyStore, publisher: Publisher) -> None:
    committed: list[int] = []

    def broken(folder: Path) -> None:
        raise InterruptedError("half way")

    publisher.publish(1, broken, lambda: committed.append(1))
    with pytest.raises(InterruptedError):
        publisher.join()
    assert committed == []
    assert policy.versions() == []
    publisher.publish(1, weights("again"), lambda: committed.append(1))
    publisher.join()
    assert committed == [1]


def test_a_failure_is_heard_of_before_anybody_waits_for_it(publisher: Publisher) -> None:
    over = threading.Event()

    def commit() -> None:
        over.set()
        raise ConnectionError("Redis is gone")

    publisher.publish(1, weights("one"), commit)
    assert over.wait(30)
    publisher.close()  # returns when the thread is through
    with pytest.raises(ConnectionError):
        publisher.check()


def test_old_versions_go_and_protected_ones_stay(policy: PolicyStore, publisher: Publisher, redis: redis.Redis) -> None:
    def commit(version: int) -> None:
        with redis.pipeline() as pipe:
            policy.point(pipe, version)
            pipe.execute()

    for version in range(5):
        publisher.publish(version, weights(str(version)), lambda v=version: commit(v))  # type: ignore[misc]
    publisher.join()
    assert policy.versions() == [1, 3, 4]


def test_what_a_crashed_learner_uploaded_without_telling_anyone_is_replaced(
    policy: PolicyStore, publisher: Publisher
) -> None:
    policy.write(1, weights("of the dead"))
    publisher.publish(1, weights("of the living"), lambda: None)
    publisher.join()
    assert (policy.open(1) / "weights").read_text() == "of the living"


def full_for(times: int) -> Callable[[Path], None]:
    """A disk that has room only after so many uploads."""
    tried: list[Path] = []

    def fill(folder: Path) -> None:
        tried.append(folder)
        if len(tried) <= times:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        weights("at last")(folder)

    return fill


def test_an_upload_for_which_the_disk_has_no_room_is_tried_again(policy: PolicyStore, publisher: Publisher) -> None:
    committed: list[int] = []
    publisher.publish(1, full_for(2), lambda: committed.append(1))
    publisher.join()
    assert committed == [1]
    assert policy.versions() == [1]


def test_one_that_never_had_room_does_not_count_as_published_when_the_learner_ends(
    policy: PolicyStore, publisher: Publisher
) -> None:
    committed: list[int] = []
    publisher.publish(1, full_for(10**9), lambda: committed.append(1))
    published = publisher.barrier()
    publisher.close()
    with pytest.raises(OSError, match="no space left for policy version 1"):
        published()
    assert (committed, policy.versions()) == ([], [])
