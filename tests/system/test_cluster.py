"""Several hosts, weights through Redis alone: cut off, lost, joining, and a learner that begins again in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.cluster import Network, missing
from tests.system.cluster_run import BOUND, GROUPS, LEASE, ClusterRun
from tests.system.pipeline import wait_until

CUT_SECONDS = 24.0  # six leases; `make cluster` has a whole minute of it

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "this machine can be a cluster")


def test_a_host_has_an_address_a_cable_and_a_folder_of_its_own(tmp_path: Path) -> None:
    with Network(tmp_path / "hosts") as network:
        one, other = network.host("one"), network.host("other")
        assert one.address != other.address
        (other.folder / "secret").touch()
        looks = one.start(["/bin/sh", "-c", f"hostname; ls {tmp_path / 'hosts'} {other.folder}"])
        assert looks.wait() != 0
        assert one.log.read_text().split()[0] == "one"
        assert "secret" not in one.log.read_text()
        listens = "import socket; s = socket.create_server(('0.0.0.0', 7000)); s.accept(); s.accept(); s.accept()"
        other.start(["/usr/bin/env", "python3", "-c", listens])
        wait_until(lambda: one.can_reach(other.address, 7000), "it listens")
        other.cut_off()
        assert not one.can_reach(other.address, 7000)
        other.put_back()
        wait_until(lambda: one.can_reach(other.address, 7000), "the cable is in again")


@pytest.mark.timeout(600)
def test_a_run_outlives_what_happens_to_hosts(tmp_path: Path, taught: Path) -> None:
    told = ClusterRun(tmp_path / "hosts", taught, CUT_SECONDS).play()
    assert told.train.balanced
    assert told.evaluation.balanced
    assert told.train.verdicts.get("stale", 0) == 0, "nothing is dropped to keep the bound"
    assert told.train.verdicts.get("failed", 0) == 0
    assert told.oldest <= BOUND
    assert told.while_cut_off > CUT_SECONDS / (3 * LEASE), "the run goes on meanwhile"
    assert told.after_return > 0
    assert told.train.verdicts["trained"] == GROUPS * told.steps
