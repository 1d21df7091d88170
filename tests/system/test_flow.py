"""I2, driven by hypothesis: whatever generators and learner do to each other, no token beyond the bound is trained on,
nothing is dropped, what is consumed is what was sampled, and nothing deadlocks. And: each shortcut that the design
forbids makes these tests fail.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from broker.keys import Keys
from broker.tickets import Claim, TicketStream
from consumer.buffer import Bound, StalenessBuffer
from consumer.dispatch import Dispatch
from consumer.lineup import Lineup
from tests.system.flow import LEASE, Shape, VirtualGenerator, World


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    publish_every = draw(st.integers(1, 3))
    depth = draw(st.integers(publish_every - 1, 3))
    least = max(depth, int(publish_every > 1))
    bound = draw(st.integers(least, least + 1))  # a bound far above the depth is never reached
    return Shape(
        order=draw(st.sampled_from(["ready", "strict"])),
        groups_per_step=draw(st.integers(1, 3)),
        pipeline_depth=depth,
        max_staleness=bound,
        publish_every=publish_every,
        steps=draw(st.integers(6, 14)),
        slots=draw(st.integers(1, 3)),
    )


def begin(world: World, g: VirtualGenerator, luck: int) -> None:
    """Claim; one ticket in ten is ten times longer, three groups in ten are degenerate."""
    world.claim(g, 10 if luck == 9 else 1, degenerate=luck < 3)


def sample(world: World, g: VirtualGenerator, luck: int) -> None:
    world.sample(g, luck)


def begin_and_stall(world: World, g: VirtualGenerator, luck: int) -> None:
    """Begin long groups and fall silent."""
    world.claim(g, 10, degenerate=False)
    for job in range(len(g.jobs)):
        world.sample(g, job)
    g.stalled = True


def wake(world: World, g: VirtualGenerator, luck: int) -> None:
    g.stalled = False


def wake_and_finish(world: World, g: VirtualGenerator, luck: int) -> None:
    """Wake up late, unaware of anything, and publish what one has."""
    g.stalled = False
    for _ in range(10 * len(g.jobs)):
        world.sample(g, 0)


def lapse(world: World, g: VirtualGenerator, luck: int) -> None:
    """Leases lapse; another generator takes over, at its own pace."""
    world.pass_time(LEASE + 1)
    world.claim(g, 10 if luck < 5 else 1, degenerate=False)


def pass_time(world: World, g: VirtualGenerator, luck: int) -> None:
    world.pass_time(LEASE / 3)


def work(world: World, g: VirtualGenerator, luck: int) -> None:
    """A round in which everybody who is awake works: how a run gets far enough for its deadlines to matter."""
    for each in world.generators:
        world.refresh(each)
        world.claim(each, 1, degenerate=luck < 3)
        for _ in range(len(each.jobs)):
            world.sample(each, len(each.jobs) - 1)
    world.poll()
    world.finish_step()
    if luck % 2:
        world.land()


def send_again(world: World, g: VirtualGenerator, luck: int) -> None:
    world.send(g, luck)


def refresh(world: World, g: VirtualGenerator, luck: int) -> None:
    world.refresh(g)


def hand_back(world: World, g: VirtualGenerator, luck: int) -> None:
    world.give_back(g)


def die(world: World, g: VirtualGenerator, luck: int) -> None:
    world.die(g)
    if len(world.generators) < 2:
        world.join()


def join(world: World, g: VirtualGenerator, luck: int) -> None:
    if len(world.generators) < 4:
        world.join()


def poll(world: World, g: VirtualGenerator, luck: int) -> None:
    world.poll()


def finish_step(world: World, g: VirtualGenerator, luck: int) -> None:
    world.finish_step()


def land(world: World, g: VirtualGenerator, luck: int) -> None:
    world.land()


def checkpoint(world: World, g: VirtualGenerator, luck: int) -> None:
    world.checkpoint()


Move = Callable[[World, VirtualGenerator, int], None]
WEIGHTS: dict[Move, int] = {
    work: 12, begin: 4, sample: 4, begin_and_stall: 3, wake: 1, wake_and_finish: 2, lapse: 2, pass_time: 1,
    send_again: 1, refresh: 1, hand_back: 1, die: 1, join: 1, poll: 2, finish_step: 2, land: 2, checkpoint: 1,
}  # fmt: skip
MOVES = [move for move, weight in WEIGHTS.items() for _ in range(weight)]
moves = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 3), st.integers(0, 9)), min_size=40, max_size=80)


# Two stories that random play finds rarely, told in full. Depth equals the bound, one group a step: every deadline is
# tight.
TIGHT = Shape(order="ready", groups_per_step=1, pipeline_depth=2, max_staleness=2, steps=10, slots=2)
TWO_DUE_AT_ONCE: list[tuple[Move, int, int]] = [(begin_and_stall, 0, 0), *[(work, 1, 5)] * 6]
LATE_OWNER_PUBLISHES: list[tuple[Move, int, int]] = [
    (join, 0, 0), (begin_and_stall, 0, 0), (work, 1, 5), (lapse, 1, 0), (lapse, 2, 0),
    *[(work, 1, 5)] * 8, (wake_and_finish, 0, 0), *[(work, 1, 5)] * 3,
]  # fmt: skip


def play(client: redis.Redis, world_class: type[World], shape: Shape, script: list[tuple[Move, int, int]]) -> None:
    """From an empty Redis through the script to the end of the run, checking after every move."""
    client.flushall()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        world = world_class(client, Keys("flow"), Path(folder), shape)
        world.join()
        world.join()
        for move, which, luck in script:
            move(world, world.generators[which % len(world.generators)], luck)
            world.check()
        world.complete()


SEARCH_ONLY = [Phase.explicit, Phase.generate]  # a mutant's failure need not be minimal


def search(client: redis.Redis, world_class: type[World], examples: int) -> None:
    @given(shape=shapes(), script=moves)
    @example(shape=TIGHT, script=TWO_DUE_AT_ONCE)
    @example(shape=TIGHT, script=LATE_OWNER_PUBLISHES)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=list(Phase) if world_class is World else SEARCH_ONLY,
        suppress_health_check=list(HealthCheck),
    )
    def run(shape: Shape, script: list[tuple[Move, int, int]]) -> None:
        play(client, world_class, shape, script)

    run()


def test_no_token_beyond_the_bound_and_nothing_dropped(redis: redis.Redis) -> None:
    search(redis, World, examples=300)


class CreditBeforePublication(World):
    """Credit is freed as soon as a batch is taken; the version that learns from it is still to come."""

    class Early(Dispatch):
        def _credit(self, freed: Any = (), trained: int = 0) -> int:
            gone = set(freed)
            left = [t for t in self.in_play if t not in gone]
            needed = self.flow.total_groups - self.trained - trained - len(set(left) - set(self._unpublished()))
            return max(0, min(self.flow.capacity - sum(t not in self.taken for t in left), needed))

    dispatch_class = Early

    def poll(self) -> bool:
        begun = super().poll()
        self.dispatch.refill()
        return begun

    def credit_holds(self) -> None:
        """Not asked here: that staleness breaks is the point."""


class DueGroupOnly(World):
    """`ready` that merely waits for the group whose deadline is now."""

    class Buffer(StalenessBuffer):
        def _offender(self, in_play: Any, batch: set[str], bound: Bound) -> str | None:
            due = [t for t, m in in_play.items() if t not in batch and m == bound.version - bound.max_staleness]
            return next((t for t in due if t not in self.held), None)

    buffer_class = Buffer


class MinimumRaisedAtReclaim(World):
    """A reclaimed ticket is booked at the newest version, although its first owner may still publish."""

    def claimed(self, claim: Claim) -> None:
        line = self.dispatch.waiting()
        if claim.suspect and claim.ticket.ticket_id in line:
            self.dispatch.lineup = Lineup({**line, claim.ticket.ticket_id: self.dispatch.version})

    def the_line_is_what_is_in_play(self) -> None:
        """Not asked here: that staleness breaks is the point."""


class UnboundedRead(World):
    """A generator that found nothing sleeps in its read until a new ticket comes, and never looks for lapsed ones."""

    class Stream(TicketStream):
        asleep = False

        def claim(self, free: int, *, held: Sequence[Claim] = (), block_seconds: float | None = None) -> list[Claim]:
            claims = [] if self.asleep else self._reclaim(free, held)
            claims += self._new(free - len(claims))
            self.asleep = not claims
            return claims

    stream_class = Stream


@pytest.mark.parametrize(
    ("mutant", "by"),
    [
        (CreditBeforePublication, "went stale"),
        (DueGroupOnly, "went stale"),
        (MinimumRaisedAtReclaim, "went stale"),
        (UnboundedRead, "deadlock"),
    ],
)
def test_each_forbidden_shortcut_is_caught(redis: redis.Redis, mutant: type[World], by: str) -> None:
    with pytest.raises(AssertionError, match=by):
        search(redis, mutant, examples=300)
