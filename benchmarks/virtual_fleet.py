"""Generators in virtual time: they come after a cold start, sample for as long as chance says, leave, or are lost.

Invariant: tickets are claimed, answered, handed back and reclaimed by production's `TicketStream` alone. Refuses to
know verdicts, and how many generators there should be.

A lease is Redis' own and runs in real time, beside which it is endless here; one whose owner is lost is made as old as
a lapsed one when its virtual time has come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import redis

from benchmarks.virtual_load import Shape
from benchmarks.virtual_time import Agenda
from broker.keys import GENERATORS, Keys
from broker.schema import Rollout, RolloutGroup, VersionSpan
from broker.tickets import Claim, TicketStream

ENDLESS, MOST_DELIVERIES = 86400.0, 3
PROMPT = np.array([1], np.int32)


@dataclass(eq=False)
class Pod:
    """A generator, from the moment it is asked for."""

    stream: TicketStream
    state: str = "starting"  # then up, draining, gone
    jobs: dict[bytes, Claim] = field(default_factory=dict)

    @property
    def careful(self) -> bool:
        """It holds a ticket whose earlier owner fell silent, and takes no second one of these."""
        return any(claim.suspect for claim in self.jobs.values())


@dataclass
class Fleet:
    """All of one run. `answered` is called when a group has been published."""

    client: redis.Redis
    keys: Keys
    shape: Shape
    agenda: Agenda
    chance: np.random.Generator
    group_seconds: Callable[[], float]
    answered: Callable[[], None]
    published: list[float]  # when each policy version was
    completions: int = 2  # of a group
    tokens: int = 1  # of a completion
    look_seconds: float | None = 0.0  # as TicketStream has it: whose owner is lost is to be found at once
    pods: list[Pod] = field(default_factory=list)
    names: int = 0

    @property
    def replicas(self) -> list[Pod]:
        """Those that are wanted: up, or being started."""
        return [pod for pod in self.pods if pod.state in ("starting", "up")]

    @property
    def up(self) -> list[Pod]:
        """Those that claim."""
        return [pod for pod in self.pods if pod.state == "up"]

    def scale(self, replicas: int, *, warm: bool = False) -> None:
        """As a Deployment does it: those that are not up go first, then the youngest."""
        standing = sorted(self.replicas, key=lambda pod: pod.state == "starting")
        for pod in standing[replicas:][::-1]:
            self._dismiss(pod)
        for _ in range(replicas - len(standing)):
            self._start(warm)

    def lose(self, share: float) -> None:
        """Spot nodes are taken away without a word; others are asked for in their place."""
        up = self.up
        for index in self.chance.permutation(len(up))[: math.ceil(share * len(up))]:
            self._forget(up[index])
            self.agenda.after(self.shape.lease_seconds, partial(self._lapse, up[index].stream.consumer))
            self._start(warm=False)

    def serve(self) -> None:
        """Whoever has a free slot looks for tickets."""
        pods = [pod for pod in self.up if len(pod.jobs) < self.shape.slots]
        for index in self.chance.permutation(len(pods)):
            if not self._claim(pods[index]) and not pods[index].careful:
                return  # it would have taken anything: there is nothing

    def _start(self, warm: bool) -> None:
        self.names += 1
        name, leases = f"g{self.names}", (ENDLESS, MOST_DELIVERIES)
        pod = Pod(TicketStream(self.client, self.client, self.keys, name, *leases, look_seconds=self.look_seconds))
        self.pods.append(pod)
        if warm:
            self._ready(pod)
        else:
            self.agenda.after(self.chance.uniform(*self.shape.cold_start), partial(self._ready, pod))

    def _ready(self, pod: Pod) -> None:
        if pod.state == "starting":
            pod.state = "up"
            self._claim(pod)

    def _dismiss(self, pod: Pod) -> None:
        if pod.state == "starting":
            self._forget(pod)
        else:
            pod.state = "draining"
            self.agenda.after(self.shape.drain_seconds, partial(self._leave, pod))

    def _leave(self, pod: Pod) -> None:
        """What has not been finished by now is handed back."""
        self._forget(pod)
        for claim in pod.jobs.values():
            pod.stream.give_back(claim)
        self.serve()

    def _forget(self, pod: Pod) -> None:
        pod.state = "gone"
        self.pods.remove(pod)

    def _lapse(self, name: str) -> None:
        stream, idle = self.keys.tickets("train"), int(ENDLESS * 1000) + 1
        pending: Any = self.client.xpending_range(stream, GENERATORS, "-", "+", 1000, consumername=name)
        for entry in pending:
            self.client.xclaim(stream, GENERATORS, name, 0, [entry["message_id"]], idle=idle, justid=True)
        self.serve()

    def _claim(self, pod: Pod) -> int:
        """Fill its free slots; how many tickets there were for it."""
        free = self.shape.slots - len(pod.jobs)
        if pod.state != "up" or free == 0:
            return 0
        claims = pod.stream.claim(free, held=list(pod.jobs.values()), block_seconds=0)
        for claim in claims:
            pod.jobs[claim.entry_id] = claim
            begins = max(self.agenda.now, self._has(claim.ticket.min_policy_version))
            oldest = max(v for v in range(len(self.published)) if self._has(v) <= begins)
            self.agenda.at(begins + self.group_seconds(), partial(self._answer, pod, claim, oldest))
        return len(claims)

    def _has(self, version: int) -> float:
        """Since when generators have had that version."""
        return self.published[version] + (self.shape.refresh_seconds if version else 0.0)

    def _answer(self, pod: Pod, claim: Claim, oldest: int) -> None:
        """A group is done, if its generator is still there."""
        if pod.state == "gone":
            return
        del pod.jobs[claim.entry_id]
        pod.stream.publish(claim, self._group(claim, oldest))
        self._claim(pod)
        self.answered()

    def _group(self, claim: Claim, oldest: int) -> RolloutGroup:
        ticket, best = claim.ticket, float(self.chance.random() >= self.shape.degenerate)
        tokens, logprobs = np.ones(self.tokens, np.int32), np.zeros(self.tokens, np.float32)
        spans, rewards = (VersionSpan(oldest, 0, self.tokens),), ((0.0, best)[n % 2] for n in range(self.completions))
        rollouts = tuple(Rollout(tokens, logprobs, spans, reward) for reward in rewards)
        return RolloutGroup(ticket.ticket_id, "train", ticket.problem, PROMPT, rollouts)
