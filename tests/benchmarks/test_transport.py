"""The transport leg, as small as it can be: every way brings every group across, and bare runs what ours runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.transport_cell import UNIX, server
from benchmarks.transport_groups import degenerate, group, length, lists, size_of, texts
from benchmarks.transport_trial import Load, trial
from benchmarks.transport_ways import WAYS
from broker.decoding import decode_group
from broker.schema import encode_group

LOAD = Load(size=4096, producers=2, groups=128, stored=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server(UNIX) as url:
        yield url


@pytest.mark.parametrize("size", [4 << 10, 16 << 10, 64 << 10, 1 << 20])
def test_a_group_has_the_size_that_it_is_asked_for(size: int) -> None:
    payload = encode_group(group(size, "t0000000003p0000000017", 17, 5))
    assert len(payload) == pytest.approx(size, rel=0.05)
    assert decode_group(payload).degenerate == degenerate("t0000000003p0000000017")
    assert length(size_of(300)) == 300
    for made in (lists(size), texts(size)):
        assert [len(one["logprobs"]) for one in made] == [length(size)] * 8


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_group_comes_across(url: str, way: str, stored: bool) -> None:
    load = Load(size=4096, producers=2, groups=128, stored=stored)
    found = trial(WAYS[way], url, load)
    assert found.groups == 128
    assert set(found.processor) == {"producers", "consumer", "server"}
    assert (found.coding > 0) == (way == "ours, timed")


def test_bare_runs_what_ours_runs(url: str) -> None:
    """What the server does for each group; how often one waits for another is chance, and there is none of it here."""
    ours, bare = (trial(WAYS[way], url, LOAD).commands for way in ("ours", "bare"))
    beginnings = {"script|load", "eval", "xclaim"}  # scripts that are sent once
    assert set(ours) - beginnings == set(bare) - beginnings
    for name in ("xadd", "xack", "xdel"):
        assert bare[name] == pytest.approx(ours[name], rel=0.05), name
