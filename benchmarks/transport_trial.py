"""One trial of one way of getting groups from producers to a consumer: real processes, a real server, one clock.

Invariant: the clock runs from the moment at which everybody is connected to the one at which the last group is settled,
and processor time is counted over the same span. Refuses to know how a group travels.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from typing import Any, Protocol

import redis

from broker.connection import connect
from broker.heap import keep_what_is_freed
from broker.patience import Patience
from broker.settings import BrokerSettings

PATIENT_SECONDS = 60.0
BLOCK_SECONDS = 0.5
JOIN_SECONDS = 240.0


@dataclass(frozen=True)
class Load:
    """What travels: `groups` of about `size` bytes, from `producers` processes of `slots` groups each.

    `stored`: the consumer begins when all of them lie in Redis, so that it alone is measured; they are then a multiple
    of `round`, of which half make a step.
    """

    size: int
    producers: int
    groups: int
    slots: int = 8
    groups_per_step: int = 32
    depth: int = 4
    checkpoint_every: int = 4  # steps
    stored: bool = False

    @property
    def round(self) -> int:
        """Groups until a step has been taken, half of them teaching nothing."""
        return 2 * self.groups_per_step

    @property
    def capacity(self) -> int:
        """Tickets in play, at most; all at once where they are stored first."""
        return self.groups if self.stored else (self.depth + 1) * self.groups_per_step


@dataclass(frozen=True)
class Seat:
    """What a process of a trial is told. `stop` is set when the last group is settled."""

    url: str
    run: str
    load: Load
    number: int
    stop: Any

    def client(self, blocking_seconds: float = 0.0) -> redis.Redis:
        """As a process of a run connects; it has, and the library has imported what its first command needs."""
        patience = Patience(PATIENT_SECONDS)
        made = connect(BrokerSettings(), self.url, blocking_seconds=blocking_seconds, patience=patience)
        made.ping()
        return made


class Part(Protocol):
    """A producer or a consumer, connected and ready."""

    coding: float  # processor seconds that encoding or decoding took; 0 where nobody has looked

    def run(self) -> None:
        """Until `stop`; a consumer: until all groups are settled. Where they are stored first, a producer's last."""


@dataclass(frozen=True)
class Way:
    """One way of doing it. `consumer` is made first, and finds an empty database."""

    name: str
    producer: Callable[[Seat], Part]
    consumer: Callable[[Seat], Part]


@dataclass(frozen=True)
class Outcome:
    """Of one trial; processor seconds by party (`producers`, `consumer`, `server`)."""

    groups: int
    seconds: float
    processor: dict[str, float]
    commands: dict[str, int]  # how often the server ran each
    coding: float = 0.0  # processor seconds a group of encoding and decoding

    @property
    def rate(self) -> float:
        """Groups a second."""
        return self.groups / self.seconds

    @property
    def work(self) -> float:
        """Processor seconds a group, of all parties together."""
        return sum(self.processor.values()) / self.groups

    def of(self, party: str) -> float:
        """Processor seconds a group."""
        return self.processor[party] / self.groups


def context() -> ForkServerContext:
    """Where processes come from: fresh ones, that need not import anything first."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["benchmarks.transport_ways"])
    return made


def trial(way: Way, url: str, load: Load) -> Outcome:
    """Raises `RuntimeError` where a process of it ended badly."""
    made = context()
    results: Any = made.SimpleQueue()
    stop, ready, stored = made.Event(), made.Barrier(load.producers + 1), made.Barrier(load.producers + 1)
    with connect(BrokerSettings(), url) as client:
        _clean(client)
        run, waits = uuid.uuid4().hex[:8], (ready, stored)
        seats = [Seat(url, run, load, number, stop) for number in range(load.producers + 1)]
        processes = [made.Process(target=_enter, args=(way, seat, waits, results)) for seat in seats]
        # The consumer (number 0) makes the streams: it has to be there first.
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(JOIN_SECONDS)
            if any(process.exitcode != 0 for process in processes):
                raise RuntimeError(f"a process of {way.name} failed: {[p.exitcode for p in processes]}")
        finally:
            for process in processes:
                process.kill()
        found: dict[str, Any] = {"producers": 0.0, "coding": 0.0}
        for _ in processes:
            said = results.get()
            found["producers"] += said.pop("producer", 0.0)
            found["coding"] += said.pop("coding")
            found |= said
    processor = {party: found[party] for party in ("producers", "consumer", "server")}
    coding = found["coding"] / load.groups
    return Outcome(load.groups, found["seconds"], processor, found["commands"], coding)


def _clean(client: redis.Redis) -> None:
    """Empty, and with nothing left to do from the trial before."""
    client.flushall()
    while not _rewriting(client):
        pass
    _rewritten(client)
    client.config_resetstat()


def _rewriting(client: redis.Redis) -> bool:
    """Whether the server has begun to write its file anew on being asked: two at a time it refuses."""
    _rewritten(client)
    try:
        client.bgrewriteaof()
    except redis.ResponseError as error:
        if "in progress" not in str(error):
            raise
        return False  # it has just begun one by itself
    return True


def _rewritten(client: redis.Redis) -> None:
    while any(client.info("persistence")[f"aof_rewrite_{what}"] for what in ("in_progress", "scheduled")):
        time.sleep(0.01)


def _enter(way: Way, seat: Seat, waits: tuple[Any, Any], results: Any) -> None:
    gc.freeze()  # this and the next as our processes do it, here for every way
    keep_what_is_freed()
    try:
        results.put(_consume(way, seat, waits) if seat.number == 0 else _produce(way, seat, waits))
    except BaseException:
        for barrier in waits:
            barrier.abort()  # the others must not wait for ever
        seat.stop.set()
        raise


def _produce(way: Way, seat: Seat, waits: tuple[Any, Any]) -> dict[str, Any]:
    part = way.producer(seat)
    ready, stored = waits
    ready.wait()
    began = time.process_time()
    part.run()
    spent = time.process_time() - began
    if seat.load.stored:
        stored.wait()
    return {"producer": spent, "coding": part.coding}


def _consume(way: Way, seat: Seat, waits: tuple[Any, Any]) -> dict[str, Any]:
    part = way.consumer(seat)
    ready, stored = waits
    with seat.client() as client:
        server = _server(client)
        ready.wait()
        if seat.load.stored:
            stored.wait()
            server = _server(client)
        began, spent = time.perf_counter(), time.process_time()
        part.run()
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
        seat.stop.set()
        commands: Any = client.info("commandstats")
        return {
            "seconds": seconds,
            "consumer": spent,
            "coding": part.coding,
            "server": _server(client) - server,
            "commands": {name.removeprefix("cmdstat_"): int(told["calls"]) for name, told in commands.items()},
        }


def _server(client: redis.Redis) -> float:
    told: Any = client.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])
