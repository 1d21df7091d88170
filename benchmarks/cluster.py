"""`make cluster`: a run on several hosts that lose their cables and their power, and what became of it.

Writes benchmarks/cluster.md. The hosts are network namespaces of this machine (tests/system/cluster.py).
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from broker.cli import guarded
from broker.errors import Refused
from broker.ledger import Balance
from tests.system.cluster import missing
from tests.system.cluster_run import BOUND, DEPTH, GROUPS, LEASE, ClusterRun, Told
from tests.system.teaching import taught_to_add

PAGE = Path(__file__).with_name("cluster.md")


def page(told: Told, cut_seconds: float) -> str:
    """As Markdown."""
    rows = [
        ("steps, and policy versions through Redis", f"{told.steps}, {told.versions}"),
        ("seconds in all", f"{told.seconds:.0f}"),
        ("steps while one host was cut off and another lost", str(told.while_cut_off)),
        ("train books: issued = " + " + ".join(told.train.verdicts), _sum(told.train)),
        ("evaluation books: issued = evaluated", _sum(told.evaluation)),
        ("groups without a verdict, anywhere, at the end", str(len(told.train.unsettled | told.evaluation.unsettled))),
        (f"oldest token trained on, versions (bound {BOUND})", str(told.oldest)),
        ("dropped as stale", str(told.train.verdicts.get("stale", 0))),
        ("published a second time by a host that came back: counted and dropped", str(told.late)),
        *((f"groups published by the host that `{name}`", str(count)) for name, count in told.groups.items()),
        ("of these by the one that was cut off, after its return", str(told.after_return)),
    ]
    lines = [
        "# A cluster on one machine",
        "",
        "`make cluster`: network namespaces as hosts, each with an address of its own on one switch: Redis",
        "(with users), the learner, and generators, which share no folder and join with Redis' address and the model.",
        "Weights travel through Redis. One generator's cable is pulled for",
        f"{cut_seconds:.0f} seconds ({cut_seconds / LEASE:.0f} leases), another's power fails for good just then,",
        "a fourth host joins meanwhile, and at last the learner is stopped and started again.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Linux {platform.release().split('-')[0]}; tiny model,",
        f"{GROUPS} groups a step, depth {DEPTH}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in rows),
    ]
    return "\n".join([*lines, ""])


def _sum(balance: Balance) -> str:
    return f"{balance.issued} = " + " + ".join(str(count) for count in balance.verdicts.values())


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.cluster", description="hosts that fail, and a run that does not")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a host is cut off")
    options = parser.parse_args()
    if reason := missing():
        raise Refused(f"this machine cannot be a cluster: {reason}", "run it as root on Linux")
    with tempfile.TemporaryDirectory() as folder:
        told = ClusterRun(Path(folder) / "hosts", taught_to_add(Path(folder)), options.seconds).play()
    assert told.train.balanced
    assert told.evaluation.balanced
    PAGE.write_text(page(told, options.seconds), encoding="utf-8")
    print(page(told, options.seconds))


if __name__ == "__main__":
    main()
