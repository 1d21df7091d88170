"""As many generators as one server takes here: real TicketStream clients, each on two connections of its own.

Generators are threads of a few processes, which claim, hold a ticket for a while, renew it once and publish a small
group; this process settles what arrives with production's ledger and issues as many tickets again. Invariant: every
group that was published is settled exactly once, and a claim's time begins before its ticket is in the books. Refuses
to know models, rewards and batches.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import redis

from benchmarks.scale_meter import cpu_seconds
from broker.connection import connect
from broker.keys import Keys
from broker.ledger import Ledger
from broker.schema import Rollout, RolloutGroup, Ticket, VersionSpan
from broker.settings import BrokerSettings
from broker.streams import RolloutStream, create_groups
from broker.ticket_id import TicketId
from broker.tickets import Claim, TicketStream

KEYS = Keys("connections")
LEASE, BLOCK, PROCESSES = 60.0, 1.0, 2
WARM = 2.0
STACK = 256 << 10  # bytes of a thread
TOGETHER = 64  # groups that are settled at once, at most
Found = list[tuple[str, float]]  # ticket_id, when its claim returned


@dataclass(frozen=True)
class Reached:
    """What came of one number of generators. Seconds."""

    generators: int
    connections: int  # the server's count
    held: float  # how long each ticket was in a generator's hands, on average
    groups: int
    seconds: float
    claims: tuple[float, ...]  # from the issue of a ticket to the return of its claim
    servers: float  # CPU of the server, a second

    @property
    def rate(self) -> float:
        """Groups a second."""
        return self.groups / self.seconds

    def quantile(self, share: float) -> float:
        """Of the claims."""
        return float(np.quantile(self.claims, share))


def group_of(claim: Claim) -> RolloutGroup:
    """As small as they are."""
    tokens, logprobs = np.ones(1, np.int32), np.zeros(1, np.float32)
    made = tuple(Rollout(tokens, logprobs, (VersionSpan(0, 0, 1),), reward) for reward in (0.0, 1.0))
    return RolloutGroup(claim.ticket.ticket_id, "train", claim.ticket.problem, tokens, made)


def _serve(stream: TicketStream, held: float, seed: int, stop: threading.Event, found: Found) -> None:
    """A generator's life."""
    luck = random.Random(seed)
    while not stop.is_set():
        claims = stream.claim(1, block_seconds=BLOCK)
        now = time.monotonic()
        for claim in claims:
            found.append((claim.ticket.ticket_id, now))
            if held:
                half = luck.uniform(0, held)
                stop.wait(half)
                stream.renew([claim])
                stop.wait(half)
            stream.publish(claim, group_of(claim))


def _work(url: str, number: int, generators: int, held: float, pipe: Connection) -> None:
    """A process of generators: says when they are connected, begins and ends when told, and tells what they claimed."""
    threading.stack_size(STACK)
    sys.setswitchinterval(1.0)  # hundreds of threads would ask for their turn 200 times a second each
    settings, clients, found = BrokerSettings(), list[redis.Redis](), Found()
    stop, threads = threading.Event(), list[threading.Thread]()
    for each in range(generators):
        pair = connect(settings, url), connect(settings, url, blocking_seconds=LEASE)
        for client in pair:
            client.ping()
        clients += pair
        stream = TicketStream(*pair, KEYS, f"g{number}-{each}", LEASE, 3)
        threads.append(threading.Thread(target=_serve, args=(stream, held, each, stop, found), daemon=True))
    pipe.send("connected")
    pipe.recv()
    for thread in threads:
        thread.start()
    pipe.send("begun")
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    pipe.send(found)


class Desk:
    """The learner's side: tickets out, groups in, settled and replaced at once."""

    def __init__(self, url: str) -> None:
        settings = BrokerSettings()
        self.client, blocking = connect(settings, url), connect(settings, url, blocking_seconds=BLOCK)
        create_groups(self.client, KEYS)
        self.ledger = Ledger(self.client, KEYS)
        self.ledger.fence.take_over()
        self.rollouts = RolloutStream(self.client, blocking, KEYS)
        self.issued: dict[str, float] = {}
        self.settled = 0

    def turn(self, more: int) -> None:
        """Settle what has arrived, and issue as many tickets again, and `more`."""
        arrivals = self.rollouts.claim(TOGETHER, BLOCK) if not more else []
        numbers = range(len(self.issued), len(self.issued) + len(arrivals) + more)
        tickets = [Ticket(str(TicketId(number, 0)), 0, 0, 0) for number in numbers]
        now = time.monotonic()
        self.issued |= {ticket.ticket_id: now for ticket in tickets}
        with self.ledger.transaction() as pipe:
            self.ledger.settle(pipe, [(a.entry_id, a.ticket_id) for a in arrivals], "trained")
            self.ledger.issue(pipe, tickets)
        self.settled += len(arrivals)

    def drain(self) -> None:
        """What is still under way arrives; nothing is issued for it."""
        while arrivals := self.rollouts.claim(TOGETHER, BLOCK):
            with self.ledger.transaction() as pipe:
                self.ledger.settle(pipe, [(a.entry_id, a.ticket_id) for a in arrivals], "trained")
            self.settled += len(arrivals)

    def close(self) -> None:
        """Both connections."""
        self.client.close()
        self.rollouts.close()


def reached(url: str, pid: int, generators: int, held: float, seconds: float) -> Reached:
    """So many generators at work for so long, a ticket in play for each."""
    context = multiprocessing.get_context("spawn")
    shares = [generators // PROCESSES + (n < generators % PROCESSES) for n in range(PROCESSES)]
    pipes, workers = list[Connection](), list[Any]()
    for number, share in enumerate(shares):
        ours, theirs = context.Pipe()
        workers.append(context.Process(target=_work, args=(url, number, share, held, theirs), daemon=True))
        pipes.append(ours)
        workers[-1].start()
    desk = Desk(url)
    try:
        _all(pipes, "connected")
        info: Any = desk.client.info("clients")
        for pipe in pipes:
            pipe.send("begin")
        _all(pipes, "begun")
        desk.turn(generators)
        _turn(desk, 1.5 * held + WARM)
        began, before, busy = time.monotonic(), desk.settled, cpu_seconds(pid)
        _turn(desk, seconds)
        ended, groups, used = time.monotonic(), desk.settled - before, cpu_seconds(pid) - busy
        for pipe in pipes:
            pipe.send("end")
        found = [each for pipe in pipes for each in pipe.recv()]
        desk.drain()
        balance = desk.ledger.balance()
        assert balance.balanced, sorted(balance.astray)
        assert desk.settled == len(found), f"{len(found)} tickets were claimed and {desk.settled} groups settled"
        claims = [at - desk.issued[ticket] for ticket, at in found if began < desk.issued[ticket] < ended]
    finally:
        desk.close()
        for worker in workers:
            worker.join(30)
            worker.kill()
    took = ended - began
    return Reached(generators, info["connected_clients"], held, groups, took, tuple(claims), used / took)


def _turn(desk: Desk, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        desk.turn(0)


def _all(pipes: Sequence[Connection], word: str) -> None:
    for pipe in pipes:
        said = pipe.recv()
        assert said == word, said


def most(url: str, up_to: int) -> tuple[int, str]:
    """Generators whose two connections the server accepts, and what became of the first that it did not."""
    settings, clients = BrokerSettings(), list[redis.Redis]()
    try:
        while len(clients) < 2 * up_to:
            clients.append(connect(settings, url))
            clients[-1].ping()
    except (redis.RedisError, OSError) as error:
        limit: Any = clients[0].config_get("maxclients")
        return (len(clients) - 1) // 2, f"{error} (maxclients {limit['maxclients']})"
    finally:
        for client in clients:
            client.close()
    return up_to, ""
