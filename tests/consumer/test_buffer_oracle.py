"""The buffer looks at what is new and asks counts; it decides what one decides that goes through everything each time.

Whatever happens in between: tickets come and go, groups are late, dead, equal, of several versions, or come again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.schema import RolloutGroup
from consumer.buffer import Bound, Held, Order, StalenessBuffer, Wait
from consumer.lineup import Lineup
from tests.consumer.groups import arrival, failed_group, group
from tests.consumer.oracle_buffer import SlowBuffer


@dataclass
class Both:
    """One play for both buffers. `late`: the ids of tickets, which need not sort as they were issued."""

    order: Order
    keep_degenerate: bool
    staleness: int
    groups: int
    every: int
    version: int = 0
    taken: int = 0  # steps at this version
    lineup: Lineup = field(default_factory=Lineup)
    names: int = 0

    def __post_init__(self) -> None:
        self.fast, self.slow = (
            StalenessBuffer(self.order, self.keep_degenerate), SlowBuffer(self.order, self.keep_degenerate)
        )  # fmt: skip

    @property
    def bound(self) -> Bound:
        return Bound(self.version, self.taken, self.staleness, self.groups, self.every)

    def issue(self, back: int) -> None:
        """For an older version than the newest, too: nothing here may rely on their order."""
        self.names += 1
        self.lineup.add(f"{-self.names % 7}-{self.names}", max(0, self.version - back))

    def arrive(self, which: int, kind: int, oldest: int, newest: int) -> None:
        missing = [t for t in self.lineup if t not in self.slow.held]
        if missing:
            self.keep(missing[which % len(missing)], kind, oldest, newest)

    def keep(self, ticket_id: str, kind: int, oldest: int, newest: int) -> None:
        came = arrival(self.made(ticket_id, kind, max(0, self.version - oldest), self.version + newest), b"%d-1" % kind)
        assert came.group is not None
        assert self.fast.add(came)
        assert not self.fast.add(came), "a copy"
        self.slow.held[ticket_id] = Held(came.entry_id, came.group)

    def made(self, ticket_id: str, kind: int, oldest: int, newest: int) -> RolloutGroup:
        if kind == 0:
            return failed_group(ticket_id)
        made = group(ticket_id, (1.0, 1.0) if kind == 1 else (0.0, 1.0), oldest)
        if kind == 2:
            other = group(ticket_id, (0.5,), newest)
            made = RolloutGroup(ticket_id, "train", 0, made.prompt, (*made.rollouts, *other.rollouts))
        return made

    def come_again(self, which: int, kind: int, oldest: int, newest: int) -> None:
        """Redis has lost a group that was here: another one takes its place."""
        held = list(self.slow.held)
        if held:
            ticket_id = held[which % len(held)]
            assert self.fast.remove(ticket_id) == self.slow.held.pop(ticket_id)
            self.keep(ticket_id, kind, oldest, newest)

    def leave(self, which: int) -> None:
        """A ticket whose group cannot be read is settled without ever being here."""
        missing = [t for t in self.lineup if t not in self.slow.held]
        if missing:
            self.lineup.remove(missing[which % len(missing)])

    def consume(self) -> None:
        found = self.fast.consumed(self.lineup, self.bound)
        assert found == self.slow.consumed(dict(self.lineup), self.bound)
        for held, _ in found:
            self.lineup.remove(held.group.ticket_id)

    def train(self, publish: bool) -> None:
        """Take a batch if one may be had; the version grows with it, or after a few of them."""
        found = self.fast.take(self.lineup, self.bound)
        assert found == self.slow.take(dict(self.lineup), self.bound)
        if isinstance(found, Wait):
            return
        for held in found:
            self.lineup.remove(held.group.ticket_id)
        self.taken += 1
        if publish or self.taken == self.every:
            self.version, self.taken = self.version + 1, 0

    def check(self) -> None:
        assert self.fast.held == self.slow.held
        minima = list(self.lineup.values())
        assert self.lineup.counts() == sorted((m, minima.count(m)) for m in set(minima))


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), st.integers(0, 3), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("arrive"), st.integers(0, 30), st.integers(0, 9), st.integers(0, 5), st.integers(0, 1)),
        st.tuples(st.just("come_again"), st.integers(0, 30), st.integers(0, 9), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 30), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("consume"), st.just(0), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("train"), st.integers(0, 1), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("publish"), st.just(0), st.just(0), st.just(0), st.just(0)),
    ),
    min_size=20,
    max_size=120,
)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from(["ready", "ready", "strict"]), st.booleans(), st.integers(0, 5), st.integers(1, 3),
    st.integers(1, 3), MOVES,
)  # fmt: skip
def test_it_decides_as_one_that_goes_through_everything(
    order: Order, keep: bool, staleness: int, groups: int, every: int, moves: list[tuple[str, int, int, int, int]]
) -> None:
    both = Both(order, keep, staleness, groups, every)
    for _ in range(4 * groups):
        both.issue(0)
    for name, a, b, c, d in moves:
        match name:
            case "issue":
                both.issue(a)
            case "arrive":
                both.arrive(a, b, c, d)
            case "come_again":
                both.come_again(a, b, c, d)
            case "leave":
                both.leave(a)
            case "consume":
                both.consume()
            case "train":
                both.train(bool(a))
            case "publish":  # a version of which nothing is known here
                both.version, both.taken = both.version + 1, 0
        both.check()


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 6), st.integers(1, 3), st.integers(0, 8), st.data())
def test_a_mapping_that_is_no_lineup_is_asked_the_same(
    staleness: int, groups: int, version: int, data: st.DataObject
) -> None:
    minima = data.draw(st.lists(st.integers(0, version), min_size=1, max_size=20))
    in_play = {f"t{n:02d}": m for n, m in enumerate(minima)}
    fast, slow = StalenessBuffer("ready"), SlowBuffer("ready")
    for ticket_id in data.draw(st.lists(st.sampled_from(sorted(in_play)), unique=True)):
        came = arrival(group(ticket_id, version=version))
        assert came.group is not None
        fast.add(came)
        slow.held[ticket_id] = Held(came.entry_id, came.group)
    at = Bound(version, 0, staleness, groups)
    assert fast.take(in_play, at) == slow.take(in_play, at)
    backwards = dict(reversed(in_play.items()))
    assert fast.take(backwards, at) == slow.take(backwards, at), "what is left of them, lined up otherwise"
