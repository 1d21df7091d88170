"""Our contract, by production's classes: tickets, streams, schema, buffer, dispatch, ledger, fence and pointer.

Invariant: nothing is done here that production does elsewhere: this only decides that sampling takes no time, and that
every other group teaches nothing. Refuses to know Redis' commands.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.transport_groups import group, samples
from benchmarks.transport_trial import BLOCK_SECONDS, Seat, Way
from broker import schema, streams
from broker.keys import Keys
from broker.ledger import Ledger
from broker.policy import PolicyStore
from broker.schema import RolloutGroup, Ticket
from broker.streams import RolloutStream, create_groups
from broker.tickets import TicketStream
from consumer.buffer import Bound, Held, StalenessBuffer, Wait
from consumer.dispatch import Dispatch
from consumer.inbox import CLAIM_COUNT
from consumer.tickets import Flow

MEMORY = Path("/dev/shm")  # weights are another leg's: no disk is waited for
ENDLESS = 10**9  # groups
MAX_STALENESS = 8  # where groups come as they are asked for; more where all were asked for at the beginning


class Stopwatch:
    """Processor seconds that a function takes, from its first call here."""

    def __init__(self, module: Any, name: str) -> None:
        """Puts itself in the function's place, for the rest of this process."""
        self._work, self.seconds = getattr(module, name), 0.0
        setattr(module, name, self)

    def __call__(self, *arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return self._work(*arguments)
        finally:
            self.seconds += time.thread_time() - began


class Producer:
    """A generator's end."""

    coding = 0.0

    def __init__(self, seat: Seat) -> None:
        self._load, self._stop = seat.load, seat.stop
        name, client, blocking = f"g{seat.number}", seat.client(), seat.client(BLOCK_SECONDS)
        self._tickets = TicketStream(client, blocking, Keys(seat.run), name, 60.0, 3)
        samples(seat.load.size)  # drawn before the clock runs

    def run(self) -> None:
        """Claims as many tickets as it has slots, and answers them at once."""
        while not self._stop.is_set():
            block = 0.0 if self._load.stored else BLOCK_SECONDS
            claims = self._tickets.claim(self._load.slots, block_seconds=block)
            if not claims and self._load.stored:
                return
            self._tickets.publish_all([(claim, self._answer(claim.ticket)) for claim in claims])

    def _answer(self, ticket: Ticket) -> RolloutGroup:
        return group(self._load.size, ticket.ticket_id, ticket.problem, ticket.min_policy_version)


class Learner:
    """The learner's end: takes in, settles what teaches nothing, takes batches, commits steps, makes them final."""

    coding = 0.0

    def __init__(self, seat: Seat) -> None:
        load = self._load = seat.load
        client, keys = seat.client(), Keys(seat.run)
        create_groups(client, keys)
        ledger = Ledger(client, keys)
        ledger.fence.take_over()
        self._folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        policy = PolicyStore(client, keys, Path(self._folder.name), 2, 60.0)
        for version in range(load.groups // load.groups_per_step + 2):
            policy.write(version, lambda folder: _fill(folder))
        flow = Flow(load.capacity, load.groups_per_step, ENDLESS, problems=1000, seed=0)
        self._dispatch = Dispatch(ledger, policy, flow)
        self._buffer = StalenessBuffer("ready")
        self._rollouts = RolloutStream(client, seat.client(BLOCK_SECONDS), keys)
        self._step = self._checkpoints = self._settled = 0
        self._dispatch.open(0)

    def run(self) -> None:
        """Until all groups are settled."""
        while self._settled < self._load.groups:
            for arrival in self._rollouts.claim(CLAIM_COUNT, BLOCK_SECONDS):
                assert self._dispatch.expects(arrival.ticket_id), arrival
                assert self._buffer.add(arrival), arrival
            verdicts = self._buffer.consumed(self._dispatch.waiting(), self._bound)
            self._dispatch.consume(verdicts)
            self._settled += len(verdicts)
            while not isinstance(found := self._buffer.take(self._dispatch.waiting(), self._bound), Wait):
                self._train(found)
        self._checkpoint()
        self._folder.cleanup()

    @property
    def _bound(self) -> Bound:
        load = self._load
        steps = load.groups // load.groups_per_step if load.stored else 0
        return Bound(self._step, 0, max(MAX_STALENESS, steps), load.groups_per_step)

    def _train(self, batch: list[Held]) -> None:
        self._dispatch.take(batch)
        self._step += 1
        self._dispatch.commit(self._step, self._step, [held.group.ticket_id for held in batch], publish=True)
        self._settled += len(batch)
        if self._step % self._load.checkpoint_every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        if self._dispatch.journal:
            self._checkpoints += 1
            entries = list(self._dispatch.journal)
            self._dispatch.make_final(entries, self._checkpoints, dict(self._dispatch.entry_ids), 0)


def _fill(folder: Path) -> None:
    (folder / "weights").write_text("w")


class TimedProducer(Producer):
    """One that is asked what encoding takes."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._watch = Stopwatch(schema, "encode_group")

    def run(self) -> None:
        """As its base class does, and then it says so."""
        super().run()
        self.coding = self._watch.seconds


class TimedLearner(Learner):
    """One that is asked what decoding takes."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._watch = Stopwatch(streams, "decode_group")

    def run(self) -> None:
        """As its base class does, and then it says so."""
        super().run()
        self.coding = self._watch.seconds


OURS = Way("ours", Producer, Learner)
OURS_TIMED = Way("ours, timed", TimedProducer, TimedLearner)
