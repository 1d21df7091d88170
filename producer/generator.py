"""The generator: claims tickets, samples and scores a group for each, publishes it, and takes up new weights in flight.

Invariant: it claims no more tickets than its engine has free slots, samples none below its `min_policy_version`, and
every ticket it claimed it publishes, hands back or loses to its lapsed lease: leaving or dying disturbs nobody.
Refuses to know verdicts, advantages and how weights come about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import redis
import structlog

from broker.audit_log import AuditLog
from broker.keys import Keys
from broker.points import reached
from broker.policy_reader import PolicyReader
from broker.schema import RolloutGroup
from broker.tickets import Claim, TicketStream
from monitoring.metrics import GeneratorMetrics
from producer.account import account
from producer.engine import Engine, Unsampled
from producer.hand import Hand
from producer.keeper import EngineKeeper
from producer.outbox import Outbox
from producer.refresher import Refresher
from producer.sampler import Sampler, Served
from producer.settings import GeneratorRecipe
from producer.tasks import Task
from producer.tokens import Tokens
from producer.verify import VerifierPool

BLOCK_SECONDS = 1.0  # longest wait for a ticket in one call: also how soon a stop is noticed


@dataclass
class Generator:
    """One generator process; `run` returns when it was asked to stop and holds nothing any more."""

    name: str
    recipe: GeneratorRecipe
    client: redis.Redis
    keys: Keys
    tickets: TicketStream
    policy: PolicyReader
    engine: Engine
    task: Task
    tokens: Tokens
    verifiers: VerifierPool
    metrics: GeneratorMetrics
    belong: Callable[[], None]  # says again what the run is, should Redis have forgotten; raises `Refused` if it is not
    audit: AuditLog = field(default_factory=AuditLog.off)
    clock: Callable[[], float] = time.time
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)  # then it waits for nothing in flight
    failure: Exception | None = None
    hand: Hand = field(init=False)
    outbox: Outbox = field(init=False)
    keeper: EngineKeeper = field(init=False)
    refresher: Refresher = field(init=False)
    sampler: Sampler = field(init=False)
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("generator"))

    def __post_init__(self) -> None:
        self.hand, self.outbox = Hand(self.engine.slots), Outbox(self.tickets.publish_all)
        self.keeper = EngineKeeper(self.engine, self._pause, self.stopping.is_set)
        parts = (self.policy, self.engine, self.keeper, self.metrics)
        self.refresher = Refresher(self.name, *parts, self._pause, self._say, self.stopping.is_set)
        asked = (self.task, self.tokens, self.verifiers, self.metrics)
        self.metrics.ready_when(self._ready)
        self.sampler = Sampler(self.name, self.recipe, self.engine, self.keeper, self.refresher, *asked)

    async def run(self) -> None:
        """Serve until `stopping` is set or the run has finished. An engine that keeps dying ends it by an error."""
        self.metrics.slots.set(self.engine.slots)
        endless = [self.keeper.run(self._revived)]
        if not self.recipe.run.deterministic:
            endless.append(self.refresher.run())
        endless_tasks = [asyncio.create_task(loop) for loop in endless]
        tasks = [*endless_tasks, *(asyncio.create_task(loop) for loop in (self._claim_loop(), self._lease_loop()))]
        stop = asyncio.create_task(self.stopping.wait())
        try:
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # a loop that ends before the stop does so by an error
        finally:
            self.stopping.set()
            stop.cancel()
            hand_back = self.tickets.patience.leaving.set  # at once, and nothing is waited for
            await self.hand.drained(self.recipe.generator.drain_seconds, self.hurried, hand_back)
            await self.refresher.notify()
            for task in endless_tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self._leave)
            await asyncio.to_thread(self.audit.close)
        if self.failure is not None:
            raise self.failure

    # -- loops ---------------------------------------------------------------------------------------------------

    async def _claim_loop(self) -> None:
        while not self.stopping.is_set():
            self._say()
            with self.metrics.phase("wait_slot"):
                async with self.refresher.changed:
                    await self.refresher.changed.wait_for(lambda: self._free > 0 or self.stopping.is_set())
            if self.stopping.is_set():
                return
            held, free = self.hand.claims, self._free
            with self.metrics.phase("wait_ticket"):
                claims = await asyncio.to_thread(self.tickets.claim, free, held=held, block_seconds=BLOCK_SECONDS)
            if self.stopping.is_set():
                for claim in claims:
                    await asyncio.to_thread(self.tickets.give_back, claim)
                return
            if claims:
                reached("generator.claimed")
            if claims or not self.hand.serving:
                self.metrics.progress()  # to ask in vain is all that an idle generator has to do: it is idle, not ill
            for claim in claims:
                self.metrics.tickets.labels(event="claimed").inc()
                self.hand.take(claim, asyncio.create_task(self._serve(claim)))
            self.metrics.in_flight_groups.set(self.hand.busy)

    @property
    def _free(self) -> int:
        """Tickets that may be claimed now: none before there are weights to answer them with, which others may have."""
        begun = self.engine.policy_version >= 0 or self.recipe.run.deterministic
        return self.hand.free if self.keeper.ready and begun else 0

    async def _lease_loop(self) -> None:
        """Renew what we hold, say that we live, notice the end of the run; three times a lease."""
        interval = self.tickets.lease_seconds / 3
        while not self.stopping.is_set():
            held = self.hand.claims
            ours = await asyncio.to_thread(self.tickets.renew, held)
            reached("generator.renewed")
            for claim in held:
                if claim.entry_id not in ours and (serving := self.hand.lose(claim)) is not None:
                    self.log.warning("lost a ticket to its lapsed lease", ticket=claim.ticket.ticket_id)
                    self.metrics.tickets.labels(event="lost").inc()
                    serving.cancel()
            if await asyncio.to_thread(self._heartbeat, 2 * interval):
                self.log.info("the run has finished")
                self.stopping.set()
            await self._pause(interval)

    # -- one ticket --------------------------------------------------------------------------------------------------

    async def _serve(self, claim: Claim) -> None:
        """From ticket to published group. Cancelled: the ticket goes back."""
        began = time.perf_counter()
        try:
            served = await self.sampler.serve(claim.ticket, claim.deliveries, partial(self._sampled, claim))
            reached("generator.verified")
            with self.metrics.phase("publish"):
                first = await self.outbox.publish(claim, served.group)
            reached("generator.published")
            self.metrics.tickets.labels(event="published" if first else "late").inc()
            if first:
                self._count(served.group)
            self._tell(claim, served, time.perf_counter() - began)
        except asyncio.CancelledError:
            if await asyncio.to_thread(self.tickets.give_back, claim):
                self.metrics.tickets.labels(event="handed_back").inc()
            raise
        except Exception as error:
            await self._failed(claim, error)
        finally:
            self.hand.drop(claim)
            self.metrics.in_flight_groups.set(self.hand.busy)
            await self.refresher.notify()

    async def _sampled(self, claim: Claim) -> None:
        """The engine is free for another one while this is scored and published."""
        self.hand.sampled(claim)
        self.metrics.in_flight_groups.set(self.hand.busy)
        await self.refresher.notify()

    def _tell(self, claim: Claim, served: Served, seconds: float) -> None:
        """The audit log, also of a copy: which of two was the first is known for certain to the learner alone."""
        if self.audit.on and claim.ticket.kind == "train":
            prompt = "" if served.prompt is None else self.tokens.shown(served.prompt)  # no tokenizer on other threads
            self.audit.write(claim.ticket.ticket_id, partial(account, claim, served, prompt, seconds))

    async def _failed(self, claim: Claim, error: Exception) -> None:
        """Others try the ticket, at once; one that fails again and again runs out of deliveries."""
        self.log.warning("could not serve a ticket", ticket=claim.ticket.ticket_id, error=repr(error)[:300])
        try:
            if not isinstance(error, Unsampled):
                raise error  # a verifier pool or Redis is broken, not an engine that can be started again
            self.keeper.failed(error, hung=error.hung)
            await asyncio.to_thread(self.tickets.give_back, claim, failed=error.asked)
            self.metrics.tickets.labels(event="failed").inc()
        except Exception as last:
            self.failure = self.failure or last
            self.stopping.set()

    def _ready(self) -> bool:
        """It has loaded a policy, its engine lives, and it is not on its way out."""
        return self.keeper.ready and self.engine.policy_version >= 0 and not self.stopping.is_set()

    # -- leaving -----------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        try:
            self.policy.release(self.name)
            self.client.hdel(self.keys.generators, self.name)
        except redis.RedisError as error:
            self.log.warning("could not sign off", error=str(error)[:300])
        self.policy.close()

    def _heartbeat(self, seconds: float) -> bool:
        """Say that this generator lives; True if the run has finished."""
        self.belong()
        self.client.hset(self.keys.generators, self.name, str(self.clock() + seconds))
        return bool(self.client.exists(self.keys.finished))

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past a stop."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _revived(self) -> None:
        self.metrics.progress()
        self.metrics.engine_restarts.inc()
        await self.refresher.notify()

    def _say(self) -> None:
        """What the whole process waits for: a ticket, or a version that everything in its hands asks for."""
        if not self.keeper.ready:
            self.metrics.waiting("engine")
            return
        lowest = min((claim.ticket.min_policy_version for claim in self.hand.claims), default=-1)
        if lowest > self.engine.policy_version:
            self.metrics.waiting("version", str(lowest))
        else:
            self.metrics.waiting("none" if self.hand.serving else "ticket")

    def _count(self, group: RolloutGroup) -> None:
        self.metrics.observe_group(group)
        if group.failed:
            self.log.warning("a group failed", ticket=group.ticket_id, reason=group.failed)
