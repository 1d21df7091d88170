"""The flow at scale: bounds that hold for every run, group by group, and a benchmark that counts what it says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scale, scale_report
from benchmarks.findings import Finding
from benchmarks.scale_connections import most, reached
from benchmarks.scale_cost import BATCH, Station, microseconds
from benchmarks.scale_findings import findings
from benchmarks.scale_floor import Knows, Sides, floor, synchronous
from benchmarks.scale_meter import Meter
from benchmarks.scale_picture import picture
from benchmarks.scale_run import Job, played, server
from benchmarks.scale_times import DISTRIBUTIONS, gsm8k, lognormal
from broker.embedded import EmbeddedServer

KNOWS: tuple[Knows, ...] = ("promised", "told", "any")

# -- how long groups take ---------------------------------------------------------------------------------------------


def test_the_slowest_hundredth_of_groups_takes_ten_times_the_median() -> None:
    assert lognormal().tail() == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_group_takes_as_long_as_a_step_on_average(name: str) -> None:
    assert DISTRIBUTIONS[name]().draw(np.random.default_rng(3), 1 << 18).mean() == pytest.approx(1, rel=0.02)


def test_gsm8k_s_longest_of_eight_answers_have_a_short_tail() -> None:
    assert 1.5 < gsm8k().tail() < 3


# -- floors -----------------------------------------------------------------------------------------------------------


def drawn(sides: Sides, steps: int) -> Any:
    return lognormal().draw(np.random.default_rng(5), sides.capacity + steps * sides.groups_per_step)


def test_without_depth_every_bound_is_that_of_a_plain_loop() -> None:
    """Each batch waits for its slowest group and is trained for 1."""
    sides, steps = Sides(8, 8, 0, 0), 500
    slowest = drawn(sides, steps)[: steps * 8].reshape(steps, 8).max(axis=1)
    loop = slowest.sum() / (slowest.sum() + steps)
    for knows in KNOWS:
        assert floor(drawn(sides, steps), sides, steps, knows) == pytest.approx(loop)
    assert synchronous(lognormal(), 8) == pytest.approx(loop, abs=0.02)


def test_whoever_knows_and_may_do_more_need_not_wait_longer() -> None:
    for depth, bound in ((1, 1), (2, 3), (2, 8), (4, 4), (4, 16)):
        sides = Sides(8, 8, depth, bound)
        promised, told, any_design = (floor(drawn(sides, 200), sides, 200, knows) for knows in KNOWS)
        assert any_design <= told <= promised + 0.01
        assert any_design < promised - 0.02 or bound > 4


def test_more_depth_or_a_wider_bound_lowers_the_floor_and_fewer_slots_raise_it() -> None:
    def least(sides: Sides) -> float:
        return floor(drawn(Sides(8, 8, 16, 16), 200), sides, 200)

    assert least(Sides(8, 8, 2, 8)) < least(Sides(8, 8, 2, 4)) < least(Sides(8, 8, 1, 1)) < least(Sides(8, 8, 0, 0))
    assert least(Sides(8, 4, 2, 8)) > 0.4, "half of the slots sample half as fast as the learner trains"


# -- runs in virtual time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "bound"), [(0, 0), (1, 2), (2, 6)])
def test_ready_is_as_idle_as_its_floor_says_and_no_less(depth: int, bound: int) -> None:
    found = played(Job("log-normal", depth, bound, generators=2, slots=4, steps=25))
    assert found.idle == pytest.approx(found.promised, abs=1e-9)
    assert found.stalest <= bound
    assert found.staleness <= depth
    assert 0 <= found.slots_idle < 1


def test_strict_is_never_less_idle_than_any_bound() -> None:
    found = played(Job("GSM8K", 3, 3, "strict", generators=2, slots=4, steps=25))
    assert found.idle >= found.promised - 1e-9
    assert found.promised >= found.any
    assert found.groups_a_step == pytest.approx(8 * (1 - found.idle))


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", scale.WAITS.values(), ids=scale.WAITS)
def test_what_the_learner_s_side_does_is_counted_and_nothing_else(seconds: float, tmp_path: Path) -> None:
    with server() as (started, client):
        meter = Meter(started.pid)
        station = Station(client, tmp_path, meter, lognormal(), 40, seconds)
        for _ in range(2):
            station.step()
        ours, servers = meter.ours, meter.servers
        with meter.counting(), meter.paused():
            sum(n * n for n in range(200_000))
        assert meter.ours - ours < 0.005
        assert all(each > 0 for each in microseconds(station, 10))
        assert meter.servers > servers
        assert station.dispatch.ledger.count("trained") == 10 * BATCH, "a checkpoint has made ten steps final"
        assert station.dispatch.trained == 12 * BATCH
        assert len(station.dispatch.in_play) == station.shape.capacity
        assert station.dispatch.ledger.balance().balanced
        station.close()


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_server() -> Any:
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as started:
        yield started


def test_every_generator_has_two_connections_and_every_group_is_settled_once(one_server: EmbeddedServer) -> None:
    found = reached(one_server.url, one_server.pid, 6, 0.05, 1.0)
    assert found.connections == 2 * 6 + 1
    assert 0 < len(found.claims) <= found.groups + 6
    assert all(0 < seconds < 5 for seconds in found.claims)
    assert found.rate == found.groups / found.seconds


def test_where_the_server_takes_no_more_its_limit_is_told(one_server: EmbeddedServer) -> None:
    assert most(one_server.url, 3) == (3, "")
    with server() as (started, client):
        client.config_set("maxclients", 12)
        number, said = most(started.url, 20)
        assert number == 5, "eleven more beside this one's, two to each"
        assert "maxclients 12" in said


# -- the leg ----------------------------------------------------------------------------------------------------------


def test_the_leg_tells_of_all_parts(capfd: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = {"machine": "here"} | {name: part(True) for name, part in scale.PARTS.items()}
    document["idle"] += scale.all_of([Job("GSM8K", 0, 0, steps=3)])
    page = scale_report.page(document)
    for said in (
        "P_(m_j)",
        "| ready, depth 2 |",
        "| strict |",
        "| trains | 8 |",
        "connections",
        "and no more were tried",
    ):
        assert said in page, said
    assert os.fspath(Path.cwd()) not in page
    assert picture(document).startswith(b"\x89PNG")
    found = findings(document)
    assert all(isinstance(each, Finding) and each.values for each in found)
    above = [each for each in found if "the floor of the contract" in each.what]
    assert [each.met for each in above] == [True, True]
    assert findings({"machine": "here"}) == ()
