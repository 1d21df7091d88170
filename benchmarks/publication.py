"""How long a learner stands still for a publication: the snapshot, and the wait for the publication before.

Invariant: production's trainer, publisher and store, in the learner's order: a step is taken, the last publication is
waited for, the weights are copied, and their upload goes on beside the next step. Refuses to know who reads them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import redis

from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.policy import PolicyStore
from broker.schema import RolloutGroup
from consumer.publisher import Publisher
from consumer.trainer import Trainer
from consumer.transfer import Copies
from monitoring.metrics import LearnerMetrics

WARM_UP = 2  # publications whose memory is new
LEASE_SECONDS = 60.0


def stalls(trainer: Trainer, batches: Sequence[Sequence[RolloutGroup]], synchronise: Callable[[], None]) -> list[float]:
    """Share of the step, stall included, of each publication after the first ones; one a step."""
    with tempfile.TemporaryDirectory() as scratch:
        server = EmbeddedServer(Path(scratch) / "redis").start()
        client = redis.Redis.from_url(server.url)
        store = PolicyStore(client, Keys("benchmark"), Path(scratch) / "policy", 2, LEASE_SECONDS)
        publisher = Publisher(store, set, LearnerMetrics())
        try:
            shares = [
                _share(trainer, publisher, store, client, version, groups, synchronise)
                for version, groups in enumerate(batches)
            ]
            publisher.wait()
        finally:
            publisher.close()
            client.close()
            server.stop()
    return shares[WARM_UP:]


def _share(
    trainer: Trainer,
    publisher: Publisher,
    store: PolicyStore,
    client: redis.Redis,
    version: int,
    groups: Sequence[RolloutGroup],
    synchronise: Callable[[], None],
) -> float:
    began = time.perf_counter()
    trainer.train(groups, policy_version=version)
    synchronise()  # else the stall would be made to pay for what the device still has to do for the step
    stepped = time.perf_counter()
    publisher.wait()
    snapshot = trainer.snapshot()
    synchronise()
    ended = time.perf_counter()
    publisher.publish(version, partial(_fill, trainer, snapshot), partial(_commit, store, client, version))
    return (ended - stepped) / (ended - began)


def _fill(trainer: Trainer, snapshot: Copies, folder: Path) -> None:
    trainer.model.write(folder, snapshot)


def _commit(store: PolicyStore, client: redis.Redis, version: int) -> None:
    with client.pipeline() as pipe:
        store.point(pipe, version)
        pipe.execute()
